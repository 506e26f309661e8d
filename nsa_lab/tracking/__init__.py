"""Every run's record: on disk first, then in MLflow, which is imported here alone."""

from nsa_lab.tracking.tracker import Status, Tracker, annotate, last_run_id, prepare_store, push, serve_ui, tracking_uri

__all__ = ["Status", "Tracker", "annotate", "last_run_id", "prepare_store", "push", "serve_ui", "tracking_uri"]
