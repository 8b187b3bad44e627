"""From image files to batches: sources, decoding, augmentation, masks, pipeline."""
