"""The files of a run, and who may trust them."""
