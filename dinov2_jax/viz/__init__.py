"""Arrays and run files in, pictures and a page out; NumPy only, no backend."""
