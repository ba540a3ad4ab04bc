"""`alignrun eval-preference`: how good a reward model, preference model or judge is."""
