"""Decoding token by token, with caches."""
