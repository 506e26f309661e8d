"""Passwords in URIs stay in memory: what is written or printed shows *** in their place."""

import os
import re

MASK, SOURCE = "***", "MLFLOW_TRACKING_URI"
# What stands between : and the last @ behind it, unless it is a port with a path; and what a query calls so.
PASSWORD = re.compile(
    r"(://[^\s/@:'\"]*:)(?!\d+/)\S+(?=@)|([?&]\w*(?:password|passwd|pwd|token|secret)=)[^&\s'\"]+", re.I
)
_known: dict[str, str] = {}


def hide(text: str) -> str:
    """`text` with *** for every password of a URI in it."""
    return PASSWORD.sub(lambda found: f"{found[1] or found[2]}{MASK}", text)


def keep(uri: str) -> str:
    """`uri` without its password, which this process and, by MLFLOW_TRACKING_URI, those it starts can `reveal`."""
    hidden = hide(uri)
    if hidden != uri:
        _known[hidden] = os.environ[SOURCE] = uri
    return hidden


def reveal(uri: str) -> str | None:
    """The URI that was kept as `uri`, here or in MLFLOW_TRACKING_URI; None where its password is not known."""
    if MASK not in uri:
        return uri
    given = os.environ.get(SOURCE, "")
    return _known.get(uri) or (given if hide(given) == uri else None)
