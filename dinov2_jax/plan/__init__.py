"""What a training step needs of devices that are not at hand, from its program."""
