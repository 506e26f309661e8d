"""What is wrong with one sample, as opposed to the whole data set."""

from collections.abc import Mapping

from nsa_lab.errors import NsaLabError

UNREADABLE = "unreadable video"
OVER = {key: f"more than {key} tokens" for key in ("data.max_tokens", "training.tokens_per_batch")}
"""By the setting that limits a sample's tokens."""
RESERVED = "reserved token in its text"
BAD_ROW = "unusable row"
MISSING = "missing video file"
KINDS = (UNREADABLE, *OVER.values(), RESERVED, BAD_ROW, MISSING)
SKIPPED = "skipped (data.on_bad_sample=skip), others are only counted: %s"
"""What is said of the first."""


class BadSampleError(NsaLabError):
    """One sample cannot be used; `data.on_bad_sample=skip` passes it over. `kind` is one of KINDS."""

    def __init__(self, message: str, kind: str = UNREADABLE):
        self.kind = kind
        # A DataLoader worker raises this again with its whole traceback as the message: ours is the tail.
        super().__init__(message.rsplit("BadSampleError: ", 1)[-1].strip())

    def of(self, sample: str) -> "BadSampleError":
        """The same, with the id of its sample."""
        return BadSampleError(f"sample {sample}: {self}", self.kind)


def check_length(tokens: int, frames: tuple[int, int, int], limits: Mapping[str, int]) -> None:
    """Raise BadSampleError where a sample of so many tokens is over one of `limits`, by setting.

    frames: how many its video has, and their height and width in pixels.
    """
    count, height, width = frames
    for setting, limit in limits.items():
        if tokens > limit:
            raise BadSampleError(
                f"{tokens} tokens ({count} frames of {width}x{height}) are more than {setting}={limit}; raise it,"
                " or lower data.fps, data.max_frames or data.max_pixels",
                OVER[setting],
            )


def refuse_most(counts: Mapping[str, int], samples: int, last: BadSampleError) -> None:
    """Raise NsaLabError where more than half of so many samples are bad; counts: the bad ones by kind."""
    if 2 * sum(counts.values()) > samples:
        reasons = ", ".join(f"{count} with {kind}" for kind, count in counts.items() if count)
        raise NsaLabError(
            f"more than half of {samples} samples are bad ({reasons}); mend the data set,"
            f" or raise the limit it meets; the last: {last}"
        ) from last
