"""MLflow's page on a local store."""

import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nsa_lab.config import ExperimentConfig
from nsa_lab.errors import NsaLabError
from nsa_lab.redact import reveal
from nsa_lab.tracking.page import runs_link
from nsa_lab.tracking.store import ENVIRONMENT, prepare_store, tracking_uri

PATIENCE_S = 2.0
QUIET = {"PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "WARNING"}


def serve_ui(config: ExperimentConfig, port: int = 5000, host: str = "127.0.0.1", browse: bool = False) -> int:
    """Serve MLflow's page until Ctrl-C or SIGTERM, and open it in the browser with `browse`; the exit code.

    Raises NsaLabError when the store is a server with a page of its own, or the port is none or taken.
    """
    uri = tracking_uri(config)
    if uri.startswith("http"):
        raise NsaLabError(f"{uri} is a tracking server with a page of its own; open it in a browser")
    if not 1 <= port <= 65535:
        raise NsaLabError(f"--port {port} is no port; choose one from 1 to 65535")
    if _answers(host, port):
        raise NsaLabError(f"port {port} is taken; choose another, for example --port {port % 65535 + 1}")
    link = runs_link(host, port, str(prepare_store(config)))
    print(f"MLflow starts on the store {uri}", flush=True)
    store = ["--host", host, "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "ui", *store, "--uvicorn-opts", "--log-level warning"]
    try:
        with _own_group(
            command, env=os.environ | ENVIRONMENT | QUIET | {"MLFLOW_BACKEND_STORE_URI": reveal(uri) or uri}
        ) as server:
            while server.poll() is None and not _answers(host, port):
                time.sleep(0.2)
            if server.poll() is None:
                print(f"{link}\nCtrl-C ends it", flush=True)
                if browse:
                    webbrowser.open(link)
            return server.wait()
    except KeyboardInterrupt:
        return 0


def _answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@contextmanager
def _own_group(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in a group of its own, all of which ends with the block; SIGTERM ends the block as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield server
    finally:
        signal.signal(signal.SIGTERM, before)
        for number in (signal.SIGTERM, signal.SIGKILL):
            # The group may be gone, and it may outlive its leader.
            with suppress(ProcessLookupError):
                os.killpg(server.pid, number)
            with suppress(subprocess.TimeoutExpired):
                server.wait(PATIENCE_S)
