"""Every run's record: on disk first, then in MLflow, which is imported here alone."""

from nsa_lab.tracking.sender import annotate, attach, finish_left, push
from nsa_lab.tracking.store import prepare_store, tracking_uri
from nsa_lab.tracking.tracker import Status, Tracker, last_run_id
from nsa_lab.tracking.ui import serve_ui

__all__ = [
    "Status",
    "Tracker",
    "annotate",
    "attach",
    "finish_left",
    "last_run_id",
    "prepare_store",
    "push",
    "serve_ui",
    "tracking_uri",
]
