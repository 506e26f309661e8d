"""The body of a process that another one started to train with it: python -m nsa_lab.training.follow CONFIG FOLDER."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from nsa_lab.config import load_saved_config
from nsa_lab.errors import NsaLabError
from nsa_lab.training.run import run


def main(config: Path, directory: Path) -> int:
    """Train until the end; 2 where that fails for a reason that the user can mend."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to hear
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        run(load_saved_config(config), directory=directory, progress_bar=False)
    except NsaLabError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
