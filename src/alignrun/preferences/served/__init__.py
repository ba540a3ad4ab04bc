"""Asking what runs on a server: requests, retries and the answers that are kept, for judges and reward models."""
