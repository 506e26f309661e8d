"""What lmms-eval died of, from what it printed."""

import re
from pathlib import Path

from nsa_lab.benchmark.settings import Benchmark

OURS = re.compile(r"^(?:\[rank\d+\]: )?nsa_lab\.errors\.\w+: (.+)$", re.MULTILINE)
RAISED = re.compile(r"^(?:\[rank\d+\]: )?([\w.]*(?:Error|Exception|OfflineModeIsEnabled)): (.+)$", re.MULTILINE)
LAUNCHER = ("ChildFailedError", "CalledProcessError")
UNREACHED = re.compile(
    r"Couldn't (?:reach|find)|OfflineModeIsEnabled|LocalEntryNotFound|ConnectionError|DatasetNotFound"
)
NO_VIDEO = re.compile(r"video path:? ?(\S+) does not exist", re.IGNORECASE)


def why(log: Path, chosen: Benchmark, home: str) -> str:
    """One line: the thing that is missing or wrong, and the remedy. `home` is where data sets are looked for."""
    text = log.read_text(errors="replace")
    dataset, task = chosen.settings.dataset, chosen.task
    if ours := OURS.findall(text):
        return f"{task}: {ours[-1]}"
    if video := NO_VIDEO.search(text):
        return f"{task}: video {video[1]} is not there; unpack the videos of {dataset} so that it is, or set HF_HOME"
    if UNREACHED.search(text):
        return (
            f"{task} needs the data set {dataset}, which is not in HF_HOME={home} and cannot be fetched; where there is"
            f" a network, `hf download --repo-type dataset {dataset}` puts it there; or give --rows DIR (see {log})"
        )
    raised = [f"{name}: {said}" for name, said in RAISED.findall(text) if not name.endswith(LAUNCHER)]
    lines = text.strip().splitlines()
    reason = raised[-1] if raised else lines[-1] if lines else "it said nothing"
    return f"{task}: lmms-eval failed ({reason[:300]}); all that it said is in {log}"
