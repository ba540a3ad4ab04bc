"""`alignrun eval`: policies against each other on held-out prompts."""
