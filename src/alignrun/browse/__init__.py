"""`alignrun runs` and `alignrun diff`: the runs of a folder, and how two of them differ."""
