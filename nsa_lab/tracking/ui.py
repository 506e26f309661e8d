"""MLflow's page on a local store."""

import os
import socket
import subprocess
import sys

from nsa_lab.config import ExperimentConfig
from nsa_lab.errors import NsaLabError
from nsa_lab.tracking.store import ENVIRONMENT, prepare_store, tracking_uri


def serve_ui(config: ExperimentConfig, port: int = 5000, host: str = "127.0.0.1") -> int:
    """Serve MLflow's page until interrupted; the exit code.

    Raises NsaLabError when the store is a server with a page of its own, or the port is taken.
    """
    uri = tracking_uri(config)
    if uri.startswith("http"):
        raise NsaLabError(f"{uri} is a tracking server with a page of its own; open it in a browser")
    with socket.socket() as probe:
        if probe.connect_ex((host, port)) == 0:
            raise NsaLabError(f"port {port} is taken; choose another, for example --port {port + 1}")
    prepare_store(config)
    page = f"http://{host}:{port}/#/experiments?workflowType=machine_learning"
    print(f"MLflow on {page} (store {uri}), ready in some 10 s; Ctrl-C ends it", flush=True)
    store = ["--backend-store-uri", uri, "--host", host, "--port", str(port), "--workers", "1"]
    try:
        return subprocess.run([sys.executable, "-m", "mlflow", "ui", *store], env=os.environ | ENVIRONMENT).returncode
    except KeyboardInterrupt:
        return 0
