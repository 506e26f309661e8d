"""Start values of a model of which no process ever holds all weights: each is drawn whole, alone, and its part is kept.

A constructor run under `Drawing` leaves a model whose parameters are on the meta device, and consumes the same random
numbers as without it, so that the parts are those of the weights that one process would have had.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
FILLING = {
    aten.uniform_.default, aten.normal_.default, aten.zero_.default, aten.fill_.Scalar, aten.copy_.default,
    aten.eye.m_out,
}  # fmt: skip
"""In-place ops whose result depends on nothing that was in the tensor."""


@dataclass(frozen=True)
class Share:
    """What process `rank` of `world` keeps of a tensor: some of its rows, as FSDP2 splits them."""

    rank: int = 0
    world: int = 1

    def rows(self, count: int) -> slice:
        """Which of `count` rows; none where the processes before have them all."""
        each = -(-count // self.world)
        return slice(min(self.rank * each, count), min((self.rank + 1) * each, count))


class Drawing(TorchDispatchMode):
    """While it is entered, parameters become meta tensors, and the `share` of what is written into them is kept.

    Weights are drawn on `device`, by its generator, in the dtype that they are made in, and kept there as `dtype`.
    Buffers are made as ever. Raises TypeError where a start value is computed in a way that it does not know.
    """

    def __init__(self, share: Share, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.share, self.device, self.dtype = share, device, dtype
        self.made = WeakIdKeyDictionary()  # by parameter what the constructor made, until it is written over
        self.parts = WeakIdKeyDictionary()
        self.current: Tensor | None = None
        self.whole = torch.empty(0)

    def __enter__(self) -> "Drawing":
        self.hook = register_module_parameter_registration_hook(cast(Any, self._register))
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hook.remove()
        super().__exit__(kind, value, trace)

    def adopt(self, parameter: nn.Parameter) -> None:
        """Count a parameter on the meta device, made before, among those whose start value is kept."""
        self.made[parameter] = None

    def own_parts(self, model: nn.Module) -> dict[str, Tensor]:
        """By name the parts of the parameters of `model` that have a start value; tied ones once."""
        self._put_away()
        found = {}
        for name, parameter in model.named_parameters():
            if self.made.get(parameter) is not None:
                self.current, self.whole = parameter, self.made.pop(parameter).to(self.device)
                self._put_away()
            if parameter in self.parts:
                found[name] = self.parts[parameter]
        return found

    def _register(self, module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.is_meta:
            if parameter not in self.made and parameter not in self.parts and parameter is not self.current:
                raise TypeError(f"{type(module).__name__}.{name} is computed from weights that are not there yet")
            return parameter
        shell = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        self.made[shell] = parameter.detach()
        return shell

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = [
            (args[place] if place < len(args) else kwargs.get(argument.name))
            for place, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        target = next((x for x in written if isinstance(x, Tensor) and x.is_meta), None)
        if target is None:
            return func(*args, **kwargs)
        real = self._real(func, target)
        args, kwargs = tree_map(lambda x: real if x is target else x, (args, kwargs))
        func(*args, **kwargs)
        return target

    def _real(self, func: Any, target: Tensor) -> Tensor:
        """Memory for `target`, a parameter or a view of one: the parameter that is being written has all of its."""
        parameter = target if target._base is None else target._base
        if parameter is not self.current:
            self._put_away()
            if parameter not in self.made and parameter not in self.parts:
                raise TypeError(f"{func} writes to what is no parameter; give it its start value by torch.nn.init")
            made = self.made.pop(parameter, None)
            if target is parameter and func in FILLING:
                made = torch.empty(parameter.shape, dtype=parameter.dtype, device=self.device)
            if made is None:
                raise TypeError(f"{func} changes a weight that was put away; write its start value in one go")
            self.current, self.whole = parameter, made.to(self.device)
        if target is parameter:
            return self.whole
        return self.whole.as_strided(target.size(), target.stride(), target.storage_offset())

    def _put_away(self) -> None:
        """Keep the own rows of the weight that was written last."""
        if self.current is None:
            return
        if self.share.world > 1:
            self.whole = self.whole[self.share.rows(len(self.whole))].clone()
        self.parts[self.current] = self.whole.to(self.dtype)
        self.current, self.whole = None, torch.empty(0)


def fill(model: nn.Module, parts: Mapping[str, Tensor]) -> None:
    """Put `parts`, by name, in the place of the meta tensors of `model`, in place; tied parameters stay tied.

    Where FSDP2 has split the model they are this process's rows of each parameter, else whole parameters.
    """
    found = {parameter: name for name, parameter in model.named_parameters()}
    made = {name: nn.Parameter(_as_split(parts[name], parameter)) for parameter, name in found.items()}
    names = {name: found[parameter] for name, parameter in model.named_parameters(remove_duplicate=False)}
    model.load_state_dict({name: made[first] for name, first in names.items()}, assign=True)


def _as_split(part: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return part
    mesh, shape = parameter.device_mesh, torch.Size(parameter.shape)
    here = part.to(mesh.device_type)
    return DTensor.from_local(here, mesh, parameter.placements, run_check=False, shape=shape, stride=parameter.stride())
