"""nsa-lab: a laboratory for sparse attention in video language models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsa_lab.api import SparseAttention, ask, build_model, evaluate, load_config, load_model, score, train

__version__ = "0.1.0"
__all__ = ["SparseAttention", "ask", "build_model", "evaluate", "load_config", "load_model", "score", "train"]


def __getattr__(name: str) -> Any:
    """The API, imported when first asked for: `nsa-lab --help` needs none of it."""
    if name in __all__:
        from nsa_lab import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
