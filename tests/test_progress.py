"""What a log file says of long work."""

import pytest

from nsa_lab import progress
from nsa_lab.progress import Bar


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("COLUMNS", raising=False)
    return now


def test_a_log_gets_a_line_at_once_and_every_half_minute(clock, capsys):
    note = "loss 1.234 accuracy 0.5 " + "x" * 60
    with Bar("step", 90) as bar:
        for done in range(1, 91):
            clock[0] += 1.0
            bar.update(bar.task, completed=done, note=note)
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == (done % 30 == 1), lines
            assert all(f"{done}/90" in line and note in line for line in lines)


def test_a_quiet_bar_says_nothing(clock, capsys):
    with Bar("step", 2, disable=True) as bar:
        clock[0] += 100.0
        bar.update(bar.task, completed=1)
    assert not capsys.readouterr().err


def test_a_terminal_gets_no_lines(clock, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = Bar("step", 2)
    clock[0] += 100.0
    bar.update(bar.task, completed=1)
    assert not capsys.readouterr().err
