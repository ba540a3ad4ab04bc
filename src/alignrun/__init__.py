"""alignrun: game-theoretic alignment of language models, driven by configuration."""

__version__ = "0.1.0"
