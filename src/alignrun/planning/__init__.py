"""The memory and parameters of a run, before it starts."""
