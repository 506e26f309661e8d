"""What lmms-eval finds by the entry point `lmms_eval.models`: the model `nsa_lab`, without a fork of it."""

from typing import Any

MODEL = "nsa_lab"


def manifest() -> Any:
    """An lmms_eval.models.registry_v2.ModelManifest."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path="nsa_lab.benchmark.model.NsaLab")
