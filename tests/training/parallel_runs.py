"""One of several processes that train together: `python -m tests.training.parallel_runs FOLDER`.

Reads FOLDER/job.json (name -> settings) and FOLDER/gradients.pt (name -> the gradients that the
run compares its own with and goes on with), writes FOLDER/<rank>.pt: name -> what the run ended
with and the images that this process saw first.
"""

import json
import sys
from pathlib import Path

import torch

from ofq_core.distributed import join_world
from ofq_core.settings import RunSettings
from pipelines.training import Inputs
from tests.training.doubled import doubled_trainer, follow_gradients, outcome


def main(folder):
    job = json.loads((folder / "job.json").read_text())
    inputs = Inputs(Path(job["data"]), Path(job["teacher"]))
    gradients = torch.load(folder / "gradients.pt", weights_only=True)
    found = {}
    with join_world() as world:
        for name, settings in job["runs"].items():
            trainer = doubled_trainer(
                RunSettings(**settings), inputs, folder / f"{name}.ckpt", world
            )
            follow_gradients(trainer, gradients[name])
            trainer.run()
            found[name] = {**outcome(trainer), "seen": trainer.data.seen[:4]}
        torch.save(found, folder / f"{world.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
