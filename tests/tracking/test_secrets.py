"""Passwords in a store's address reach no file and no message."""

import pytest

from nsa_lab import origin, redact, tracking
from nsa_lab.errors import NsaLabError
from nsa_lab.tracking import Tracker
from nsa_lab.tracking import store as store_file
from nsa_lab.tracking import tracker as tracker_file
from nsa_tracking import config_in


@pytest.mark.parametrize(
    ("uri", "hidden"),
    [
        ("postgresql://me:se/c@ret@there:5432/db", "postgresql://me:***@there:5432/db"),
        ("https://me:secret@there", "https://me:***@there"),
        (
            "mysql+pymysql://there/db?user=me&password=secret&ssl=1",
            "mysql+pymysql://there/db?user=me&password=***&ssl=1",
        ),
        ("http://there:5000/a@b", "http://there:5000/a@b"),
        ("postgresql://me@there/db", "postgresql://me@there/db"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_passwords_are_hidden(monkeypatch, uri, hidden):
    monkeypatch.setattr(redact, "_known", {})
    monkeypatch.setenv(redact.SOURCE, "")
    assert redact.keep(uri) == hidden == redact.hide(hidden) and redact.reveal(hidden) == uri
    redact._known.clear()
    assert redact.reveal(hidden) == uri, "a process that it starts has it too"
    monkeypatch.setenv(redact.SOURCE, "http://elsewhere")
    assert redact.reveal(hidden) == (uri if hidden == uri else None)
    assert str(NsaLabError(f"{uri} is away")) == f"{hidden} is away"


SECRET = "http://me:hunter2@127.0.0.1:9"


def test_a_password_reaches_no_file_and_no_error(tmp_path, monkeypatch):
    """The server is away, so that the run stays in its files; then the password is given by the environment."""
    monkeypatch.setattr(redact, "_known", {})
    monkeypatch.setenv(redact.SOURCE, "")
    monkeypatch.setattr(tracker_file, "TRIAL_FINISH_PATIENCE_S", 0.0)
    monkeypatch.setattr("nsa_lab.tracking.sender.START_PATIENCE_S", 0.0)
    monkeypatch.setattr(origin, "source_state", lambda: origin.Source("abc", f"+  uri: {SECRET}\n"))
    config = config_in(tmp_path, **{"tracking.uri": SECRET})
    Tracker.open(config, tmp_path / "run", parent="p").finish()
    assert "http://me:***@127.0.0.1:9" in (tmp_path / "run/tracking.json").read_text()
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"hunter2" in file.read_bytes()]
    for given, message in (("", "give the whole URI in MLFLOW_TRACKING_URI"), (SECRET, "Connection refused")):
        store_file._client.cache_clear()
        redact._known.clear()
        monkeypatch.setenv(redact.SOURCE, given)
        with pytest.raises(NsaLabError, match=message) as caught:
            tracking.push(tmp_path)
        assert "hunter2" not in str(caught.value)
