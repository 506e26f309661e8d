"""What a number says of where it comes from."""

import re
import subprocess

from nsa_lab import origin


def test_facts_name_the_machine_the_code_and_the_day():
    facts = origin.machine_facts("cpu", 3)
    assert list(facts) == ["device", "cores", "threads", "python", "torch", "transformers", "commit", "date"]
    assert all(facts.values()) and facts["threads"] == "3" and facts["device"] == origin.cpu_name()
    assert re.fullmatch(r"[0-9a-f]{12}", origin.code_digest())
    assert origin.version("no-such-library") == "not installed"


def test_changes_that_no_commit_holds_are_seen(tmp_path, monkeypatch):
    package = tmp_path / "nsa_lab"
    package.mkdir()
    monkeypatch.setattr(origin, "__file__", str(package / "origin.py"))
    state = origin.source_state.__wrapped__
    assert state() == origin.Source("unknown", "")
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-m", "c"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert len(state().commit) == 40 and state().dirty == ""
    (package / "new.py").write_text("")
    assert state().dirty == "untracked: new.py\n"
    monkeypatch.setenv("PATH", "")
    assert state().commit == "unknown"
    monkeypatch.setenv("NSA_COMMIT", "abc123")
    assert state() == origin.Source("abc123", "")
