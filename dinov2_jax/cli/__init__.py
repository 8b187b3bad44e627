"""One file a command; the only readers of a config, where the rooms meet."""
