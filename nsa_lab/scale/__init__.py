"""From a sweep to a large training: what a design needs on real GPUs (`plan`), and its config there (`promote`)."""

from pathlib import Path
from typing import Literal

BASE = Path("experiments/scale/videonsa_7b.yaml")
"""The config that `promote` puts a design into, where none is named."""
Policy = Literal["none", "selective", "full"]
"""What the backward computes again: nothing; all but the wide products; all of each layer."""
