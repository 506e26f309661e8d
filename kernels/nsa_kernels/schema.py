"""The schema of an op whose arguments are declared once, as the fields of a NamedTuple."""

import inspect
from typing import Any, get_type_hints

import torch
from torch import Tensor


def schema_of(call: type, **before: Any) -> str:
    """The schema of an op that takes `before`, by name and type, then the fields of `call`, and returns tensors."""

    def prototype() -> None: ...

    kinds = before | get_type_hints(call)
    prototype.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kinds[name]) for name in kinds],
        return_annotation=list[Tensor],
    )
    return torch.library.infer_schema(prototype, mutates_args=())
