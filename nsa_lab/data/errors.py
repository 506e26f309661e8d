"""What is wrong with one sample, as opposed to the whole data set."""

from nsa_lab.errors import NsaLabError

UNREADABLE = "unreadable video"
TOO_LONG = "more than data.max_tokens tokens"
RESERVED = "reserved token in its text"
BAD_ROW = "unusable row"
MISSING = "missing video file"
OVER_BUDGET = "more than training.tokens_per_batch tokens"
KINDS = (UNREADABLE, TOO_LONG, RESERVED, BAD_ROW, MISSING, OVER_BUDGET)


class BadSampleError(NsaLabError):
    """One sample cannot be used; `data.on_bad_sample=skip` passes it over. `kind` is one of KINDS."""

    def __init__(self, message: str, kind: str = UNREADABLE):
        self.kind = kind
        # A DataLoader worker raises this again with its whole traceback as the message: ours is the tail.
        super().__init__(message.rsplit("BadSampleError: ", 1)[-1].strip())
