"""Sweeps on a PostgreSQL server that cuts connections, or goes away and comes back."""

import random
import time

import pytest

from nsa_lab.search.rows import read_outcome
from nsa_lab.search.storage import load_study, open_storage
from nsa_servers import PASSWORD, Postgres, postgres_programs
from nsa_sweeps import launch, log, output_of, states, wait_for_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        postgres_programs() is None, reason="no PostgreSQL: initdb is neither on PATH nor in /usr/lib/postgresql"
    ),
    pytest.mark.parametrize("workers", ["fork"], indirect=True),
]


@pytest.fixture
def server(tmp_path_factory, monkeypatch):
    pytest.importorskip("psycopg")
    found = Postgres(tmp_path_factory.mktemp("postgres"))
    found.start()
    monkeypatch.setenv("NSA_LAB_STORAGE", found.url)
    yield found
    found.stop()


def check(folder, server, process, count):
    """As many trials as asked for, each trained once, none failed, and the password nowhere."""
    output = output_of(process)
    assert process.exitcode == 0, output
    study = load_study(open_storage(server.url), "space")
    rows = read_outcome(study).rows
    assert [row.state for row in rows if row.state != "reused"] == ["complete"] * count, output
    assert states(study.get_trials())["COMPLETE"] >= count and states(study.get_trials())["FAIL"] == 0
    ends = [line.split()[1] for line in log(folder, "end")]
    assert len(ends) == len(set(ends)) == count == len(log(folder, "start"))
    files = [file for file in (folder / "runs").rglob("*") if file.is_file()]
    assert files and not [file for file in files if PASSWORD.encode() in file.read_bytes()]
    assert PASSWORD not in output


def test_cut_connections_lose_and_double_nothing(folder, server, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    process = launch(folder, 8, 2)
    wait_for_lines(folder, 1)
    dice, cuts = random.Random(0), 0
    while process.is_alive():
        time.sleep(dice.uniform(0, 0.5))
        cuts += server.cut()
    assert cuts >= 4, "the sweep hardly noticed"
    check(folder, server, process, 8)


def test_a_server_restarted_in_the_middle_costs_time_alone(folder, server, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    process = launch(folder, 6, 2)
    wait_for_lines(folder, 3)
    server.stop()
    time.sleep(3)  # trainings end while it is away
    assert process.is_alive()
    server.start()
    check(folder, server, process, 6)
