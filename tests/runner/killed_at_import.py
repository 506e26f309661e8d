"""A module whose first import ends in SIGKILL, as that of a process on a machine without memory."""

import os
import signal
from pathlib import Path

from jobs import run

__all__ = ["run"]

if not (mark := Path(os.environ["DIE_ONCE"])).exists():
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
