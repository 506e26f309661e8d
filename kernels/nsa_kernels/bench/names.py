"""What the bench can time, by the names that --only takes."""

from typing import Any

OPS = ("layer", "pool", "compression", "topk", "selection", "window", "combine")
WALKS: dict[str, dict[str, Any]] = {
    "selection-lists": {"gathered": False, "most_waste": 0.0},
    "selection-unions": {"gathered": False, "most_waste": float("inf")},
    "selection-gathered": {"gathered": True},
}
"""The selection by one of its walks alone, and what makes `selection_forward` take it."""
PARTS = {"selection-in-64s": 64}
"""The selection, forward and backward, whose backward reads longer blocks in parts of so many keys."""
NAMED = (*WALKS, *PARTS)
"""Timed only where named."""
FORWARD_ONLY = ("topk", "selection-unions")
"""The top-k has no gradient, and the selection's backward does not walk over unions."""
