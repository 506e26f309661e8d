"""The knock-out: no video row sees another frame, so that nothing travels through the video's own attention."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nsa_lab.attention.budget import Cost
from nsa_lab.attention.methods.base import Method, Plan
from nsa_lab.attention.trace import Trace
from nsa_lab.partition.segments import place_in_run


class FrameLocal(Method):
    """Every video token attends to the video tokens of its own frame (temporal patch) up to itself.

    Text rows attend as under any method, to all that `text_window` leaves them. A task that is answered nevertheless
    does not need the attention between frames.
    """

    control = True
    reads = "the tokens of its own frame up to itself"

    def prefill(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        context, rows = plan.sparse("video"), plan.layout.video_index
        rank = place_in_run(context.frame)
        plan.trace.record(self.layer, "cost", {"frame_local": Cost(keys=float((rank + 1).double().mean()))})
        video = attend_within_frames(q[rows], k[rows], v[rows], context.frame, rank, self.scale)
        return torch.cat([self.text_rows(q, k, v, plan), video])[plan.time_order]

    def cost(self, trace: Trace, lengths: Tensor) -> Cost:
        """The mean place of a token in its frame, as counted in the forward."""
        return trace.found[self.layer, "cost"]["frame_local"]


def attend_within_frames(q: Tensor, k: Tensor, v: Tensor, frame: Tensor, rank: Tensor, scale: float) -> Tensor:
    """Causal attention inside each frame: q [T, H, D], k and v [T, G, D] to [T, H, D].

    frame [T] int64 ascending from 0: the frame of each token; rank [T] int64: its place there.
    """
    if len(q) == 0:
        return q
    frames, longest = int(frame[-1]) + 1, int(rank.max()) + 1
    place = frame * longest + rank

    def by_frame(x: Tensor) -> Tensor:
        padded = x.new_zeros(frames * longest, *x.shape[1:]).index_copy(0, place, x)
        return padded.unflatten(0, (frames, longest)).transpose(1, 2)

    repeat = q.shape[1] // k.shape[1]
    keys, values = (by_frame(x).repeat_interleave(repeat, 1) for x in (k, v))
    # Padding stands at the end of its frame, where no token looks.
    out = F.scaled_dot_product_attention(by_frame(q), keys, values, is_causal=True, scale=scale)
    return out.transpose(1, 2).flatten(0, 1)[place]
