"""The files of a run, and whether to trust them."""
