"""The words a reader meets in the MLflow UI, and the tags that carry meaning there."""

from __future__ import annotations

from tables.names import method_name

PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
KIND = "ofq.kind"
METHOD = "ofq.method"
CELL = "ofq.cell"
SETTINGS = "ofq.settings_sha256"
DIGEST = "ofq.files_sha256"
RENDERED = "ofq.rendered_sha256"

ROW, EXPERIMENTS = "row", "experiments"

# MLflow before 3.10 opens an experiment with this tag on its training runs; without it, in its
# GenAI view. The value is one of the front end's own list of kinds.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def runs_page(experiment_id: str) -> str:
    """The runs list of an experiment, relative to the UI's address.

    MLflow 3.10 and later ignore the tag and open everything in the GenAI view until the reader
    presses "Model training" once; the parameter does the same for one page.
    """
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def experiment_note(experiment_id: str) -> str:
    """What the experiment's page says above its tabs; the way to the runs comes first."""
    return (
        f"**[Open the training runs]({runs_page(experiment_id)})**: one parent run per table row "
        "with one child run per seed and bit width; `dvc exp run` trains the children of "
        "`experiments`."
    )


def row_label(method: str) -> str:
    """The readable name of a method's table row; an unknown method keeps its own name."""
    return method_name(method).label
