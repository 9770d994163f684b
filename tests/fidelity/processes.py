"""One of two processes that train together: `python -m tests.fidelity.processes FOLDER`.

Reads FOLDER/job.json, writes FOLDER/<rank>.pt: what an undisturbed run and one that was cut off in
the middle of CGA and went on leave in this process; the evaluation of the shared images; LSQ's
gradients under both settings of `fidelity.lsq_group`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from ofq_core import checkpoints
from ofq_core.data import open_data
from ofq_core.distributed import join_world
from ofq_core.evaluation import evaluate
from ofq_core.models import build_model
from ofq_core.settings import RunSettings
from ofq_core.training import Teacher, Trainer, make_deterministic
from pipelines.training import Inputs, build_student
from tests.fidelity.frozen import Witness
from tests.training.doubled import Doubled

# Six steps an epoch, three epochs: the third step of CGA.
CUT_OFF_AT = 15


class CutOffError(Exception):
    """As if all processes were killed at once."""


def main(folder):
    job = json.loads((folder / "job.json").read_text())
    settings = RunSettings(**job["settings"])
    inputs = Inputs(Path(job["data"]), Path(job["teacher"]))
    data = open_data(settings.data, inputs.data)

    def trainer(world, name, observe=lambda event: None, **fidelity):
        make_deterministic(settings.seed, 1)
        changed = settings.fidelity.model_copy(update=fidelity)
        mine = settings.model_copy(update={"fidelity": changed})
        full = build_model(mine.model, mine.seed)
        checkpoints.load_weights(full, inputs.teacher, "teacher")
        student = build_student(mine, inputs, data, lambda message: None)
        teacher = Teacher(full, changed.teacher_head, changed.teacher_mode)
        return Trainer(mine, student, teacher, data, folder / name, observe, world)

    def cut_off(event):
        if event.epoch * event.steps + event.step + 1 == CUT_OFF_AT:
            raise CutOffError

    with join_world() as world:
        found = {}
        undisturbed = trainer(world, "undisturbed.ckpt")
        watch = Witness(undisturbed)
        undisturbed.run()
        found["undisturbed"] = {"state": undisturbed.model.state_dict(), **watch.counts()}

        disturbed = trainer(world, "disturbed.ckpt", cut_off)
        before = Witness(disturbed)
        try:
            disturbed.run()
        except CutOffError:
            world.wait()
        resumed = trainer(world, "disturbed.ckpt")
        after = Witness(resumed)
        resumed.run()
        counts = {key: before.counts()[key] + value for key, value in after.counts().items()}
        found["resumed"] = {"state": resumed.model.state_dict(), **counts}

        for group in ("global", "per_process"):
            one = trainer(world, f"{group}.ckpt", lsq_group=group)
            batch = next(
                data.train_batches(one.recipe, settings.seed, 0, 0, world.share, world.device)
            )
            one.model.train()
            one.gradients.fill(batch, 0, 0)
            found[group] = {
                name: parameter.grad.clone() for name, parameter in one.model.named_parameters()
            }
        # Last, since it makes another model of it.
        undisturbed.model.double()
        split = "test", 7, world.share, world.device
        found["evaluation"] = evaluate(undisturbed.model, Doubled(data), *split).as_dict()
        torch.save(found, folder / f"{world.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
