"""A language model behind a server as the preference."""
