"""Sampling with a rollout server."""
