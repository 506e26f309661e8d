"""MLflow's page on a local store."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping

from nsa_lab.errors import NsaLabError


def check_address(uri: str, host: str, port: int) -> None:
    """Raise NsaLabError when `uri` is a server itself or the port is taken."""
    if uri.startswith("http"):
        raise NsaLabError(f"{uri} is a tracking server with a page of its own; open it in a browser")
    with socket.socket() as probe:
        if probe.connect_ex((host, port)) == 0:
            raise NsaLabError(f"port {port} is taken; choose another, for example --port {port + 1}")


def ui_command(uri: str, host: str, port: int) -> list[str]:
    """The command that serves MLflow's page for a store."""
    store = ["--backend-store-uri", uri, "--host", host, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "ui", *store]


def serve(uri: str, host: str, port: int, environment: Mapping[str, str]) -> int:
    """Serve until interrupted; the exit code."""
    page = f"http://{host}:{port}/#/experiments?workflowType=machine_learning"
    print(f"MLflow on {page} (store {uri}), ready in some 10 s; Ctrl-C ends it", flush=True)
    try:
        return subprocess.run(ui_command(uri, host, port), env=os.environ | environment).returncode
    except KeyboardInterrupt:
        return 0
