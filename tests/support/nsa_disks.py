"""A real small disk for tests that fill it: a tmpfs, where root may mount one."""

import errno
import os
import subprocess
from contextlib import contextmanager

import pytest


class Disk:
    """A file system of its own; `ballast` takes the room that is left."""

    def __init__(self, path):
        self.path, self.ballast = path, path / "ballast"

    def fill(self):
        """Leave not a byte."""
        with open(self.ballast, "ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def make_room(self):
        self.ballast.unlink()


@contextmanager
def small_disk(path, megabytes):
    """A tmpfs of that size mounted on the new folder `path`. Skips the test where none can be mounted."""
    path.mkdir()
    size = f"size={megabytes}m,mode=755"
    if os.getuid() != 0:
        pytest.skip("only root may mount a tmpfs to fill")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
