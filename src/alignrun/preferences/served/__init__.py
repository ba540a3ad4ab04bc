"""Requests, retries and cached answers of judges and reward models on a server."""
