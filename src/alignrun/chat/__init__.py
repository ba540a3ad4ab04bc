"""`alignrun chat`: talk to policies."""
