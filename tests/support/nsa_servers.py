"""Servers on loopback in processes of their own, for tests that take them away: PostgreSQL, and MLflow's."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from nsa_lab.tracking.store import ENVIRONMENT

PASSWORD = "hush-hush"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def postgres_programs():
    """The folder of initdb and pg_ctl; None where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3].split(".")[0]))
    first = shutil.which("initdb") or (str(found[-1]) if found else None)
    return Path(first).parent if first else None


class Postgres:
    """PostgreSQL on a free port of loopback. It refuses to run as root, and then runs as nobody."""

    def __init__(self):
        self.programs = postgres_programs()
        place = self.place = Path(tempfile.mkdtemp(prefix="nsa-postgres-"))  # pytest keeps its folders to their owner
        self.data, self.log = place / "data", place / "log"
        self.user = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
        if self.user:
            shutil.chown(place, **self.user)
        secret = place / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run("initdb", "-D", self.data, "-U", "me", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync")
        self.port = free_port()
        self.url = f"postgresql://me:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-D", self.data, "-l", self.log, "-w", "-o", options, "start")

    def stop(self):
        self._run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def remove(self):
        if (self.data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.place)

    def cut(self):
        """Cut every connection but the one that asks; how many there were."""
        others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
        return self.ask(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {others}")

    def ask(self, query):
        """The first value of what a query answers, if it answers."""
        import psycopg

        with psycopg.connect(self.url) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchone()[0] if cursor.description else None

    def _run(self, program, *arguments):
        command = [str(self.programs / program), *map(str, arguments)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              timeout=60, cwd="/", **self.user)  # fmt: skip
        assert done.returncode == 0, command


class MlflowServer:
    """`mlflow server` on a free port of loopback, with its database and artifacts below `place`."""

    def __init__(self, place):
        self.place, self.port = place, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        """Start it, and wait until it answers."""
        stores = {"backend-store-uri": f"sqlite:///{self.place}/server.db", "artifacts-destination": self.place / "a"}
        options = [f"--{name}={value}" for name, value in stores.items()]
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1"]
        with open(self.place / "log", "a") as log:
            self.process = subprocess.Popen(
                command + options, stdout=log, stderr=log, env=os.environ | ENVIRONMENT, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.place / "log").read_text()
            time.sleep(0.1)

    def kill(self):
        """Kill it, and the processes that it started, without a warning."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _answers(self):
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False
