"""Vision Transformer, projection heads, and both together over a stack of views."""
