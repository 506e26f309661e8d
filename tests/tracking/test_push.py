"""Records that reach MLflow later, or move to another store."""

import pytest

from nsa_lab import tracking
from nsa_lab.errors import NsaLabError
from nsa_lab.tracking import Tracker
from nsa_tracking import client_of, config_in


def test_without_tracking_the_record_can_be_pushed_later(store, tmp_path):
    tracker = Tracker.open(config_in(store, **{"tracking.enabled": False}), tmp_path / "run")
    tracker.metrics({"val/accuracy": 0.5}, 3)
    tracker.finish()
    assert tracker.run_id is None
    with pytest.raises(NsaLabError, match="recorded without tracking; name a server with --uri"):
        tracking.push(tmp_path)
    uri = tracking.tracking_uri(config_in(store))
    assert tracking.push(tmp_path, uri) == [tmp_path / "run"]
    assert tracking.push(tmp_path) == [], "nothing is sent twice"
    run = client_of(config_in(store)).get_run(tracking.last_run_id(tmp_path / "run"))
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"val/accuracy": 0.5})
    with pytest.raises(NsaLabError, match="holds no record"):
        tracking.push(tmp_path / "nothing")
    for name, enabled in (("a", False), ("b", True)):
        with Tracker.open(config_in(store, **{"tracking.enabled": enabled}), tmp_path / name, parent="x") as tracker:
            tracker.sender = None  # nothing is sent yet
    assert tracking.push(tmp_path) == [tmp_path / "b"], "one that was recorded without tracking is passed over"


def test_a_sweep_that_moves_to_another_store_keeps_its_links(store, tmp_path):
    config, other = config_in(store), tracking.tracking_uri(config_in(tmp_path / "other"))
    parent = Tracker.open(config, tmp_path / "study" / "z-parent")
    Tracker.open(config, tmp_path / "study" / "child", parent=parent.run_id).finish()
    parent.finish()
    assert len(tracking.push(tmp_path / "study", other)) == 2
    moved = tracking.last_run_id(tmp_path / "study" / "z-parent")
    child = client_of(config_in(tmp_path / "other")).get_run(tracking.last_run_id(tmp_path / "study" / "child"))
    assert child.data.tags["mlflow.parentRunId"] == moved != parent.run_id
