"""Measuring a policy: sampled win rates on text, exact quantities on games."""
