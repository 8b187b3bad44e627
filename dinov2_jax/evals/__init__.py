"""How good frozen features are."""
