"""`alignrun runs` and `alignrun diff`: what the runs of a folder are, and how two of them differ."""
