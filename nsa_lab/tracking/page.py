"""What MLflow's page shows of an experiment: a view of the runs with the columns that tell them apart, and a text."""

import json

from nsa_lab.tasks import TASKS

VIEW = "nsa-lab"
COLUMNS = {
    "metrics": ("val/accuracy", *(f"val/accuracy/{task}" for task in TASKS), "val/loss", "budget/keys_per_query"),
    "params": ("attention.partition.block_size",),
    "tags": ("branches", "reducer", "study", "seed"),
}
NOTE = """Runs of nsa-lab: one for each training, a parent run for each sweep with its trials below it (open it with +).

- Params are the settings that were read and can change a result, and `model/parameters`, the size of the model.
- `val/accuracy` and `val/loss` are over all tasks, `val/accuracy/TASK` over one.
- `budget/keys_per_query` is what a query attends to, `budget/ratio_to_dense` its share of dense attention.
- `gate/BRANCH` is a branch's mean gate over layers, heads and tokens; `pictures/gates.png` shows it layer by layer.
- Filter by tags, as in `tags.study = 'NAME'`; others are branches, reducer, partition, state, config_hash and seed.
- Artifacts hold the config, the pictures, and `dirty.diff` where the code had changes that were not committed.
"""


def experiment_tags() -> dict[str, str]:
    """The tags of an experiment: MLflow's page shows runs first, in the view that `runs_link` names."""
    columns = [f"{kind}.`{name}`" for kind, names in COLUMNS.items() for name in names]
    view = {
        "selectedColumns": ["attributes.`Created`", "attributes.`Duration`", *columns],
        "orderByKey": "metrics.`val/accuracy`",
        "orderByAsc": False,
    }
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": NOTE,
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }


def runs_link(host: str, port: int, experiment_id: str) -> str:
    """The address of the table of an experiment's runs."""
    asks = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
    return f"http://{host}:{port}/#/experiments/{experiment_id}/runs?{asks}"
