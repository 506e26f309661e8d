"""What each branch of a design costs by context length: one layer's forward, each branch alone, all, and dense."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nsa_lab.bench.measure import Point
from nsa_lab.bench.run import check_length, in_fresh_process
from nsa_lab.config import ExperimentConfig, flatten, layer_attention, load_config, to_dict
from nsa_lab.config.sizes import model_size
from nsa_lab.origin import machine_facts
from nsa_lab.plugin import settings, switched_on


def bench_branches(
    config: ExperimentConfig, *, lengths: Sequence[int], repeats: int, shape: Mapping[str, int] | None = None
) -> Iterator[dict[str, Any]]:
    """A row for each length and each branch of the first layer that has some, `all` of them, and `dense`.

    shape: settings of `model` (hidden_size, num_heads, num_kv_heads, num_layers) on top, needed where it names weights.
    Seconds are those of the fastest of `repeats`, peak_mib the memory above that of libraries and inputs; each point
    runs in a process of its own, on random heads. Raises NsaLabError on a length that is not whole frames.
    """
    for length in lengths:
        check_length(length)
    machine = machine_facts(config.training.accelerator, config.training.threads)
    given = {"model.path": None} | {f"model.{name}": value for name, value in (shape or {}).items()}
    whole = load_config(None, flatten(to_dict(config)) | given)
    base = {key: value for key, value in flatten(to_dict(whole)).items() if not key.startswith("attention.")}
    for length in lengths:
        for what, design in _variants(whole).items():
            own = load_config(None, base | {f"attention.{key}": value for key, value in design.items()})
            measured = in_fresh_process(own, Point(config.name, what, length), repeats, layer=True)
            times = {"seconds": measured.seconds, "peak_mib": measured.peak_mib, "base_mib": measured.base_mib}
            yield {"what": what, "video_tokens": length, **times, "repeats": repeats, **machine}


def _variants(config: ExperimentConfig) -> dict[str, dict[str, Any]]:
    """The settings below `attention` of each measurement: those of one layer with one branch or all, and of dense."""
    designs = [layer_attention(config.attention, layer) for layer in range(model_size(config.model).num_layers)]
    sparse = next((design for design in designs if hasattr(settings(design, "method"), "branches")), None)
    first = flatten(to_dict(designs[0] if sparse is None else sparse))
    design = {key: value for key, value in first.items() if key.partition(".")[0] != "layers"}
    dense = {"dense": design | {"method": "dense"}}
    if sparse is None:
        return dense
    names = list(switched_on(sparse.branches))
    only = {name: {f"branches.{other}.enabled": other == name for other in names} for name in names}
    alone = {name: design | changes for name, changes in only.items()}
    return alone | ({"all": design} if len(names) > 1 else {}) | dense
