"""Prompts, preference pairs and demonstrations: where they come from, how they are checked, encoded and batched."""
