"""Published methods that reduce tokens; those that attend are in METHODS. A new one is one file and one line here."""

from dataclasses import dataclass

from nsa_lab.baselines.fastv import FastV
from nsa_lab.baselines.reducer import AskedHeads, Reducer, Sight
from nsa_lab.baselines.visionzip import VisionZip
from nsa_lab.baselines.vscan import VScan
from nsa_lab.plugin import chosen

REDUCERS: dict[str, type[Reducer]] = {
    "none": Reducer,
    "fastv": FastV,
    "visionzip": VisionZip,
    "vscan": VScan,
}


@chosen(kind=REDUCERS)
@dataclass
class ReducerConfig:
    """Which video tokens go on through the decoder; one for the whole model."""

    kind: str = "none"


__all__ = ["REDUCERS", "AskedHeads", "Reducer", "ReducerConfig", "Sight"]
