"""What attends in one decoder layer."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from nsa_lab.attention.backends import BACKENDS, choose_backend
from nsa_lab.attention.budget import Cost
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.ops import Backend
from nsa_lab.attention.trace import Trace
from nsa_lab.layout import TokenLayout
from nsa_lab.partition import Context, Partition
from nsa_lab.plugin import Plugin


class Plan(Protocol):
    """What a method sees of a forward: which tokens there are, and what all layers share.

    layout: the T tokens in packed order, and which rows of them are the own ones: all, unless several processes share
    a sample or rows come in chunks. full, text: contexts of dense attention, of all own rows and of the text rows.
    time_order [n] int64: where each own row stands in (text rows, video rows). trace: see Trace.
    """

    @property
    def layout(self) -> TokenLayout: ...
    @property
    def full(self) -> Context: ...
    @property
    def text(self) -> Context: ...
    @property
    def time_order(self) -> Tensor: ...
    @property
    def trace(self) -> Trace: ...

    def sparse(self, kind: Literal["video", "all"]) -> Context:
        """The keys of sparse attention, the video tokens or all, and where the video queries stand among them."""

    def partition(self, layer: int, x: Tensor) -> Partition:
        """The blocks of layer `layer`, whose attention inputs are x [T, hidden]."""


class Method(Plugin, nn.Module):
    """Computes the prefill of one layer, for all packed rows; decoding attends densely to the cache.

    `divisible` is for one whose prefill takes x and q of the own rows alone (`plan.layout.video_rows`, `text_rows`).

    A new one is a subclass in a file of its own and a line in METHODS. `partition` in its Config: the settings of the
    partition it reads, made by the plan. reads: what a video query reads where `attended` gives no number. query_tile:
    so many neighbouring queries of a frame are computed together.
    """

    reads: ClassVar[str] = "every past token"
    divisible = False
    query_tile = 1

    def __init__(self, config: Any, design: Any, dims: HeadDims, layer: int):
        """config: this class's own settings; design: all of the layer's."""
        super().__init__()
        self.config, self.dims, self.layer = config, dims, layer
        self.backend, self.text_window = design.backend, design.text_window
        self.scale = dims.head_dim**-0.5

    @classmethod
    def attended(cls, config: Any) -> int | None:
        """K: the tokens a late video query reads (VideoNSA, section 4); None: no fixed number."""
        return None

    @classmethod
    def notices(cls, config: Any, clip: str, tokens: int) -> Iterator[str]:
        """What is allowed but worth saying of these settings for a clip of `tokens` video tokens."""
        return iter(())

    def prefill(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        """[n, H, D]: x [n, hidden] the attention inputs and q [n, H, D] of the own rows, k and v [T, G, D] of all.

        After M-RoPE and in packed order.
        """
        raise NotImplementedError

    def cost(self, trace: Trace, lengths: Tensor) -> Cost:
        """What a video query read in the forward that `trace` followed; lengths [V]: video tokens of each video."""
        raise NotImplementedError

    def ops(self, device: Any) -> Backend:
        """The backend that computes on `device`."""
        return BACKENDS[choose_backend(self.backend, device)]

    def text_rows(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        """[T_text, H, D]: the text rows' attention to all tokens before them, or to the last `text_window`."""
        size = len(k) if self.text_window is None else self.text_window
        rows = q[plan.layout.text_rows]
        return self.ops(q.device).window(rows, k, v, plan.text, size=size, scale=self.scale)
