"""Token-by-token decoding with caches."""
