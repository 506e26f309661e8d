"""One model over several processes: FSDP2 per decoder layer and vision block, through Lightning's strategy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.model.sharded import refuse_code


def shard(model: VideoNSAForConditionalGeneration, mesh: DeviceMesh, precision: str) -> None:
    """Split each weight of `model` over `mesh` [processes], in place; again is no harm.

    With bf16-mixed on a GPU the weights are gathered and used in bfloat16; the split ones, their gradients and the
    optimiser's state stay float32.
    """
    if isinstance(model, FSDPModule):
        return
    half = torch.bfloat16 if precision == "bf16-mixed" and mesh.device_type == "cuda" else None
    # Inputs are not cast: it would happen in the forward but not when activation checkpointing repeats it.
    policy = MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=False)
    for block in (*model.model.visual.blocks, *model.model.language_model.layers):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a split tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_value(tensor: Tensor) -> Tensor:
    """A split tensor put together, which every process must ask for; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's, and it goes on from what one process alone has written, too.

    Lightning numbers an optimiser's states by the order of the module's parameters; they are numbered by that of the
    optimiser's groups, and ours are not the module's.
    """

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a folder of parts, written by any number of processes, or one file; returns all but the tensors."""
        path = Path(checkpoint_path)
        if path.is_dir():
            refuse_code(path)
            return super().load_checkpoint(path, weights_only=weights_only)
        assert self.model is not None
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, checkpoint.pop("optimizer_states"), strict=True):
            named = with_names(state, parameter_names(self.model, optimizer))
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint


def parameter_names(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of an optimiser's parameters in the order of its groups, by which its states are numbered."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def with_names(state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """An optimiser's state dict by parameter number to one by name."""
    groups = [group | {"params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: value for number, value in state["state"].items()}, "param_groups": groups}
