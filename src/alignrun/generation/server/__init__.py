"""Sampling by a rollout server."""
