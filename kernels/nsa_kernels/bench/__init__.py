"""`python -m nsa_kernels.bench`: parity first, then time and memory of every op, the layer, and what others offer."""
