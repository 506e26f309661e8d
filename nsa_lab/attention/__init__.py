"""Sparse attention: branches, gate, compressor, block selection, and the backends that run them."""
