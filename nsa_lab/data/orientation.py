"""How a video asks to be shown: turned and mirrored by its display matrix."""

import math
import struct
from dataclasses import dataclass

import av
from torch import Tensor

from nsa_lab.data.errors import BadSampleError

NEARLY = math.tan(math.radians(2))  # encoders round; more than this is no quarter turn


@dataclass(frozen=True)
class Orientation:
    """What is done to a stored picture to show it: first its axes change places, then each is mirrored."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, image: Tensor) -> Tensor:
        """`image` [..., H, W] as it is to be shown: [..., W, H] after a quarter turn."""
        if self.transpose:
            image = image.transpose(-1, -2)
        axes = [axis for axis, flip in ((-2, self.flip_rows), (-1, self.flip_columns)) if flip]
        return image.flip(axes) if axes else image


def orientation(frame: "av.VideoFrame") -> Orientation:
    """The frame's orientation, from the display matrix that the file or the coded frame brings.

    Raises BadSampleError where it is no quarter turn.
    """
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return Orientation()
    # A point (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side))
    straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
    if crossed <= NEARLY * straight:
        return Orientation(False, d < 0, a < 0)
    if straight <= NEARLY * crossed:
        return Orientation(True, b < 0, c < 0)
    raise BadSampleError(
        "is to be shown turned by something else than quarter turns; re-encode it upright,"
        " or leave it out (data.on_bad_sample=skip)"
    )
