"""Helpers of the tests of tracking: configs, clients, outages."""

import time

from nsa_lab import tracking
from nsa_lab.config import load_config
from nsa_lab.tracking.store import Unreachable


def config_in(folder, **overrides):
    return load_config(
        None, {"name": "needle-nsa", "tasks.needle.enabled": True, "output.dir": str(folder), **overrides}
    )


def client_of(config):
    from mlflow import MlflowClient

    return MlflowClient(tracking.tracking_uri(config))


def full_disk(*_):
    raise OSError("full")


def unreachable(*_):
    raise Unreachable("no route")


def until(condition, timeout=90):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
