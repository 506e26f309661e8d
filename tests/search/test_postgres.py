"""Sweeps on a PostgreSQL server that cuts connections, or goes away and comes back."""

import os
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from nsa_lab.search.rows import read_outcome
from nsa_lab.search.storage import load_study, open_storage
from nsa_sweeps import launch, log, output_of, states, wait_for_lines

PASSWORD = "hush-hush"


def _programs():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3].split(".")[0]))
    first = shutil.which("initdb") or (str(found[-1]) if found else None)
    return Path(first).parent if first else None


PROGRAMS = _programs()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAMS is None, reason="no PostgreSQL: initdb is neither on PATH nor in /usr/lib/postgresql"),
    pytest.mark.parametrize("workers", ["fork"], indirect=True),
]


class Server:
    """PostgreSQL on a free port of loopback. It refuses to run as root, and then runs as nobody."""

    def __init__(self, place):
        self.data, self.log = place / "data", place / "log"
        self.user = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
        if self.user:
            for folder in (place, *place.parents[:2]):
                folder.chmod(0o755)  # pytest keeps its folders to their owner
            shutil.chown(place, **self.user)
        secret = place / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run("initdb", "-D", self.data, "-U", "me", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://me:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-D", self.data, "-l", self.log, "-w", "-o", options, "start")

    def stop(self):
        self._run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def cut(self):
        """Cut every connection but the one that asks; how many there were."""
        import psycopg

        with psycopg.connect(self.url) as connection, connection.cursor() as cursor:
            others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
            cursor.execute(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {others}")
            return cursor.fetchone()[0]

    def _run(self, program, *arguments):
        command = [str(PROGRAMS / program), *map(str, arguments)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              timeout=60, cwd="/", **self.user)  # fmt: skip
        assert done.returncode == 0, command


@pytest.fixture
def server(tmp_path_factory, monkeypatch):
    pytest.importorskip("psycopg")
    found = Server(tmp_path_factory.mktemp("postgres"))
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
