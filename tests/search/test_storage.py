"""A database on a server: one that is away for a while costs time and nothing else."""

import optuna
import pytest
import sqlalchemy

from nsa_lab.errors import NsaLabError
from nsa_lab.search import storage
from nsa_lab.search.storage import PatientStorage, storage_faults


@pytest.fixture
def away(monkeypatch, tmp_path):
    """A study in a database whose connection breaks `fault.left` times; before it arrives, or after."""

    class Fault:
        left, after = 0, False

        def __call__(self, method):
            def broken(*arguments, **options):
                if self.left and not self.after:
                    self.left -= 1
                    raise sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection"))
                done = method(*arguments, **options)
                if self.left:
                    self.left -= 1
                    raise sqlalchemy.exc.OperationalError("COMMIT", {}, Exception("server closed the connection"))
                return done

            return broken

    fault = Fault()
    monkeypatch.setattr(storage, "RETRY_EVERY_S", 0.0)
    kept = PatientStorage(f"sqlite:///{tmp_path}/x.db")
    kind = type("Broken", (PatientStorage,), {})
    for name in ("set_trial_state_values", "set_trial_user_attr", "_create_new_trial"):
        method = getattr(optuna.storages.RDBStorage, name)
        monkeypatch.setattr(kind, name, storage.patient(fault(method)))
    kept.__class__ = kind
    return fault, optuna.create_study(storage=kept)


@pytest.mark.parametrize("after", [False, True])
def test_a_connection_that_breaks_costs_no_trial(away, after, caplog):
    fault, study = away
    trial = study.ask()
    fault.left, fault.after = 3, after
    trial.set_user_attr("seconds", 1.0)
    fault.left = 1
    study.tell(trial, 0.5)
    assert [t.value for t in study.get_trials()] == [0.5] and study.trials[0].user_attrs == {"seconds": 1.0}
    assert "the storage is away (server closed the connection); trying again" in caplog.text


def test_a_server_that_stays_away_ends_in_one_line_without_the_password(away, monkeypatch):
    fault, study = away
    monkeypatch.setattr(storage, "PATIENCE_S", -1.0)
    fault.left = 10
    url = "postgresql://me:secret@host:5432/db"
    reason = r"^storage postgresql://me:\*\*\*@host:5432/db: server closed.*goes on$"
    with pytest.raises(NsaLabError, match=reason), storage_faults(url):
        study.ask()
