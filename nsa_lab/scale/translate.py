"""A design in the units of another scale: blocks by the tokens of a frame, budgets by those of the context."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nsa_lab.config import AttentionConfig, ExperimentConfig, layer_attention, parse_layer_range, read_settings
from nsa_lab.plugin import in_use
from nsa_lab.scale.load import frame_and_clip

OWN = "attention."
LAYERS = "attention.layers."
FREE = {
    "attention.text_window": (None, "a probe of what the video rows pass on; text rows read everything in a training"),
    "attention.backend": ("auto", "the machine there decides"),
}
"""Settings that no design takes along."""


@dataclass(frozen=True)
class Scale:
    """Tokens of a pair of frames and of the longest clip, and decoder layers."""

    frame: int
    context: int
    layers: int

    @classmethod
    def of(cls, config: ExperimentConfig, layers: int) -> "Scale":
        return cls(*frame_and_clip(config), layers)


@dataclass(frozen=True)
class Change:
    """A setting that is another there, and why."""

    key: str
    was: Any
    becomes: Any
    reason: str

    def __str__(self) -> str:
        becomes = "null" if self.becomes is None else self.becomes
        return f"{self.key} {self.was} -> {becomes}: {self.reason}"


def translate(config: ExperimentConfig, there: Scale, here: Scale) -> tuple[dict[str, Any], list[Change]]:
    """The settings of `attention` of `config`, by dotted key, and what of them is another at the scale `here`."""
    found: dict[str, Any] = {}
    changes: list[Change] = []
    for key, value in read_settings(config).items():
        if not key.startswith(OWN):
            continue
        if key.startswith(LAYERS):
            span, _, own = key.removeprefix(LAYERS).partition(".")
            design = layer_attention(config.attention, parse_layer_range(span)[0])
            place = f"{LAYERS}{stretched(span, there.layers, here.layers)}."
        else:
            design, own, place = config.attention, key.removeprefix(OWN), OWN
        free = FREE.get(f"{OWN}{own}")
        becomes, reason = _scaled(own, value, design, there, here) if free is None else free
        found[f"{place}{own}"] = becomes
        if becomes != value or f"{place}{own}" != key:
            moved = f"{there.layers} layers there, {here.layers} here" if place + own != key else ""
            changes.append(Change(key, value, becomes, "; ".join(part for part in (moved, reason) if part)))
    return found, changes


def stretched(span: str, there: int, here: int) -> str:
    """A range of layers, as the same part of a model of `here` layers."""
    first, last = parse_layer_range(span)
    first, last = first * here // there, max(first * here // there, (last + 1) * here // there - 1)
    return f"{first}-{last}"


def _scaled(key: str, value: Any, design: AttentionConfig, there: Scale, here: Scale) -> tuple[Any, str]:
    """The value at the other scale, and the reason; itself where the setting has no scale."""
    kind = scales(design).get(key)
    if kind is None or value is None or (kind == "tile" and value == 1):
        return value, ""
    if kind in ("frame", "tile"):
        share = value / there.frame
        becomes = max(1, round(share * here.frame))
        return becomes, f"{share:g} of a pair of frames, {there.frame} tokens there and {here.frame} here"
    size = design.partition.block_size if kind == "blocks" else 1
    share = min(1.0, value * size / there.context)
    tokens, whole = share * here.context, math.ceil if share == 1 else round
    said = f"{share:.1%} of the longest clip, {there.context:,} tokens there and {here.context:,} here"
    if kind == "blocks":
        block = max(1, round(size / there.frame * here.frame))
        return max(1, whole(tokens / block)), f"{said}, in blocks of {block}"
    return max(1, whole(tokens / here.frame)) * here.frame, f"{said}, in whole frames"


def scales(design: AttentionConfig) -> Mapping[str, str]:
    """What settings of `design` are a share of, as its plug-ins say, by dotted key below `attention`."""
    return {f"{path}{name}": kind for path, _, plugin in in_use(design) for name, kind in plugin.scales.items()}
