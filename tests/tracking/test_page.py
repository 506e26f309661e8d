"""MLflow's page of the runs: its columns, its port, its processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from nsa_lab import tracking
from nsa_lab.errors import NsaLabError
from nsa_lab.tracking.page import runs_link
from nsa_lab.tracking.ui import _own_group
from nsa_tracking import client_of, config_in


def test_page_refuses_what_it_cannot_serve(tmp_path):
    with pytest.raises(NsaLabError, match="page of its own"):
        tracking.serve_ui(config_in(tmp_path, **{"tracking.uri": "http://somewhere:5000"}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(NsaLabError, match="is taken"):
            tracking.serve_ui(config_in(tmp_path), taken.getsockname()[1])
    for port in (0, 70000):
        with pytest.raises(NsaLabError, match=rf"--port {port} is no port; choose one from 1 to 65535"):
            tracking.serve_ui(config_in(tmp_path), port)


def test_the_page_shows_the_columns_that_tell_runs_apart(store):
    config = config_in(store, **{"tracking.experiment": "columns"})
    number = tracking.prepare_store(config)
    tags = client_of(config).get_experiment(number).tags
    link = runs_link("127.0.0.1", 5000, number)
    assert f"/#/experiments/{number}/runs?workflowType=machine_learning&" in link
    view = json.loads(tags[f"mlflow.sharedViewState.{link.partition('viewStateShareKey=')[2]}"])
    shown = ["metrics.`val/accuracy/needle`", "metrics.`budget/keys_per_query`", "tags.`branches`", "tags.`reducer`"]
    assert {*shown, "params.`attention.partition.block_size`", "tags.`seed`"} <= set(view["selectedColumns"])
    assert "a parent run for each sweep" in tags["mlflow.note.content"]
    client_of(config).set_experiment_tag(number, "mlflow.note.content", "ours")
    client_of(config).delete_experiment_tag(number, "mlflow.experimentKind")
    assert tracking.prepare_store(config) == number
    tags = client_of(config).get_experiment(number).tags
    assert (tags["mlflow.note.content"], tags["mlflow.experimentKind"]) == ("ours", "custom_model_development")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_page_leaves_no_process_behind(tmp_path, monkeypatch, number):
    monkeypatch.setattr("nsa_lab.tracking.ui.PATIENCE_S", 0.2)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    )
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}]).wait()"
    with pytest.raises(KeyboardInterrupt), _own_group([sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"up\n"
        os.kill(os.getpid(), number)
        time.sleep(9)
    assert server.stdout.read() == b"", "who holds the other end is gone"
