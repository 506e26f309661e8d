"""What the bench can time, by the names that --only takes."""

OPS = ("layer", "pool", "compression", "topk", "selection", "window", "combine")
WALKS = {"selection-lists": 0.0, "selection-unions": float("inf")}
"""The selection by one of its two walks alone, and the most waste with which a tile goes over its union."""
PARTS = {"selection-in-64s": 64}
"""The selection, forward and backward, whose backward reads longer blocks in parts of so many keys."""
NAMED = (*WALKS, *PARTS)
"""Timed only where named."""
