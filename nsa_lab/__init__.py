"""nsa-lab: a laboratory for sparse attention in video language models."""

__version__ = "0.1.0"
