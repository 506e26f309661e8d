"""A reducer: after layer `thin_after` only every `thin_every`-th video token goes on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nsa_lab.baselines.reducer import Reducer
from nsa_lab.errors import Problem


class Thin(Reducer):
    @dataclass
    class Config:
        """Counted from 1 over all video tokens."""

        thin_after: int = 0
        thin_every: int = 2

    @classmethod
    def problems(cls, config: Config, design: Any) -> Iterator[Problem]:
        if config.thin_every < 1:
            yield Problem("thin_every", f"{config.thin_every} is not positive; 1 keeps all")

    def after_layer(self, layer: int, x: Tensor, plan: Any) -> tuple[Tensor, Any]:
        if layer != self.config.thin_after:
            return x, plan
        is_video = plan.layout.is_video
        index = (~is_video | (is_video.cumsum(0) % self.config.thin_every == 0)).nonzero().flatten()
        return x[index], plan.keep(index)
