"""Dense causal attention, of video and text alike."""

import torch
from torch import Tensor

from nsa_lab.attention.budget import Cost
from nsa_lab.attention.inputs import DenseInputs
from nsa_lab.attention.methods.base import Method, Plan
from nsa_lab.attention.trace import Trace


class Dense(Method):
    """Every token attends to all tokens of its sample up to itself; `text_window` narrows the text rows."""

    divisible = True

    def prefill(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        ops = self.ops(q.device)
        if plan.trace.wants("dense"):
            video, keys = q[plan.layout.video_rows], plan.sparse("all")
            plan.trace.record(self.layer, "dense", DenseInputs(video, k, v, keys, ops, self.scale))
        if self.text_window is None:
            return ops.dense(q, k, v, plan.full, scale=self.scale)
        video = ops.dense(q[plan.layout.video_rows], k, v, plan.sparse("all"), scale=self.scale)
        return torch.cat([self.text_rows(q, k, v, plan), video])[plan.time_order]

    def cost(self, trace: Trace, lengths: Tensor) -> Cost:
        """The causal mean over the video tokens alone."""
        return Cost(keys=causal_mean(lengths))


def causal_mean(lengths: Tensor) -> float:
    """Video tokens at or before the average video token of videos of `lengths` [V]."""
    lengths = lengths.double()
    return float((lengths * (lengths + 1) / 2).sum() / lengths.sum())
