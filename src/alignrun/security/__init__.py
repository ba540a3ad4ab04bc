"""The trust boundary: untrusted files, text, terminal output and the current directory."""
