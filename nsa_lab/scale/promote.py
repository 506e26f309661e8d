"""`nsa-lab promote`: the config of a large training with a trial's design, and why what of it changed."""

import os
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nsa_lab.attention.backends import BACKENDS
from nsa_lab.config import ExperimentConfig, layer_attention, load_config, parse_layer_range, unflatten
from nsa_lab.config.rules import notices
from nsa_lab.errors import ConfigError, NsaLabError, Problem
from nsa_lab.files import unfit_for_a_folder, write_text, writing
from nsa_lab.plugin import in_use, settings
from nsa_lab.scale import BASE
from nsa_lab.scale.plan import Fit, Plan, Subject, make_plan
from nsa_lab.scale.rates import GPUS
from nsa_lab.scale.shape import branches_of, layers_of
from nsa_lab.scale.translate import LAYERS, OWN, Change, Scale, translate
from nsa_lab.scale.trial import Source, find_trial

GPU = "h100"
BACKEND = "triton"
"""What the attention of a large training runs on."""
WIDTH = 116


@dataclass(frozen=True)
class Promotion:
    """A config that was written: from which trial, its plan, what changed and what was not carried over."""

    file: Path
    source: Source
    config: ExperimentConfig
    plan: Plan
    changes: list[Change]
    left: list[str]
    said: list[str]


def promote(
    study: str,
    to: Path,
    *,
    trial: int | None = None,
    base: Path = BASE,
    storage: str | None = None,
    output: str = "runs",
) -> Promotion:
    """Write the config `base` with the design of a trial (by default the recommended one) to `to`.

    study: a study's name or folder; storage and output as of `sweep show`. Raises NsaLabError where there is no such
    trial or `to` exists, and ConfigError, a line for each reason, where the design cannot run at that scale.
    """
    if to.exists():
        raise NsaLabError(f"{to} exists; choose another name, or remove it")
    if to.suffix != ".yaml" or (unfit := unfit_for_a_folder(to.stem)):
        raise NsaLabError(f"--to {to} cannot name a config: {unfit if to.suffix == '.yaml' else 'end it with .yaml'}")
    source, large = find_trial(study, trial, storage, output), load_config(base)
    if problems := list(_controls(source.config)):
        raise ConfigError(problems)
    there, here = (Scale.of(own, layers_of(own)) for own in (source.config, large))
    design, changes = translate(source.config, there, here)
    config = load_config(base, design | {"name": to.stem})
    subject = Subject(config)
    if problems := list(_unfit(subject)):
        raise ConfigError(problems)
    plan = _smallest(config, subject)
    left = [f"{key}={value}" for key, value in source.searched.items() if not key.startswith(OWN)]
    said = [*notices(config), *plan.notes]
    promotion = Promotion(to, source, config, plan, changes, left, said)
    with writing(to, "choose another file with --to"):
        to.parent.mkdir(parents=True, exist_ok=True)
        write_text(to, _text(promotion, base, design, there, here))
    return promotion


def _controls(config: ExperimentConfig) -> Iterator[Problem]:
    """Parts that are there to be compared with."""
    spans = {f"{LAYERS}{span}.": parse_layer_range(span)[0] for span in config.attention.layers}
    designs = {OWN: config.attention} | {at: layer_attention(config.attention, n) for at, n in spans.items()}
    for place, design in designs.items():
        for path, name, plugin in in_use(design, place):
            if plugin.control:
                said = f"{name} is a control to compare with, no design; choose another --trial"
                yield Problem(path.rstrip("."), said)


def _unfit(subject: Subject) -> Iterator[Problem]:
    """What the kernels do not compute."""
    said = dict.fromkeys(
        reason
        for design, _ in subject.layers
        if branches_of(design)
        and (reason := BACKENDS[BACKEND].why_not_design(settings(design, "method"), subject.widths.head_dim))
    )
    for reason in said:
        yield Problem("attention", f"the {BACKEND} kernels do not run this design: {reason}")


def _smallest(config: ExperimentConfig, subject: Subject) -> Plan:
    """The plan on the fewest GPUs that hold it. Raises ConfigError where none do."""
    plan = make_plan(config, gpu=GPU, subject=subject)
    fits: list[Fit] = [fit for fit in plan.fits if fit.fits]
    if not fits:
        last, (name, gib) = plan.fits[-1], GPUS[GPU]
        raise ConfigError(
            [Problem("attention", f"needs {last.peak_gib:.0f} GiB on each of {last.gpus} {name}, which have {gib:.0f}")]
        )
    return make_plan(config, gpus=fits[0].gpus, gpu=GPU, subject=subject)


def _text(promotion: Promotion, base: Path, design: Mapping[str, Any], there: Scale, here: Scale) -> str:
    to, source, plan = promotion.file, promotion.source, promotion.plan
    samples, gpus = promotion.config.training.steps * plan.batch, plan.setup.gpus
    wall, file = plan.hours(samples), shlex.quote(str(to))
    model = promotion.config.model.path or promotion.config.model.size
    head = [
        f"Question: does {source.title} keep its quality at {model}?",
        f"Command:  nsa-lab train {file} data.annotations=train.json data.videos=videos",
        f"Cost:     not run. By `nsa-lab plan {file} --gpus {gpus}`: {gpus * wall:,.0f} H100-hours, {wall:,.0f} hours"
        f" (estimate)",
        f"Expected: not known; in the study: {source.values or 'not recorded'}",
        "",
        f"Its design with all else of {base}. A pair of frames has {there.frame} tokens there and {here.frame} here, "
        f"the longest clip {there.context:,} and {here.context:,}. What changed:",
        *(f"- {change}" for change in promotion.changes),
        *(f"- not carried over: {setting}, which is no part of a design" for setting in promotion.left),
    ]
    lines = [line for text in head for line in (_wrapped(text) or [""])]
    tree = {"extends": os.path.relpath(base, to.parent), "name": to.stem, **unflatten(design)}
    body = yaml.safe_dump(tree, sort_keys=False, width=float("inf"))
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + body


def _wrapped(text: str) -> list[str]:
    """Lines of a comment; the command stays on one, to be copied."""
    if text.startswith("Command"):
        return [text]
    indent = "          " if text[:9] in ("Question:", "Cost:    ", "Expected:") else "  " if text[:1] == "-" else ""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
