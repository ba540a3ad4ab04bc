"""Studies: many runs of one question, measured alike."""
