"""One of two processes in trouble: `python -m tests.training.shared_troubles FOLDER`.

Reads FOLDER/job.json (data, teacher, settings), FOLDER/gradients.pt (those of one process that
nothing disturbs) and FOLDER/alone.pt (the checkpoint of a run that one process began), writes
FOLDER/<rank>.pt: for every kind of trouble what this process ended with.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ofq_core import checkpoints
from ofq_core.distributed import join_world
from ofq_core.errors import CheckpointError
from ofq_core.settings import RunSettings
from ofq_core.training import TrainingError, TrainingStopped
from pipelines.training import Inputs
from tests.training.doubled import doubled_trainer, follow_gradients, outcome


class CutOffError(Exception):
    """As if all processes were killed at once."""


def cut_off(event):
    if (event.epoch, event.step) == (1, 2):
        raise CutOffError


def main(folder):
    job = json.loads((folder / "job.json").read_text())
    inputs = Inputs(Path(job["data"]), Path(job["teacher"]))
    settings = RunSettings(**job["settings"])
    gradients = torch.load(folder / "gradients.pt", weights_only=True)
    found = {}
    with join_world() as world:
        mine = world.rank == 1

        def trainer(name, **options):
            return doubled_trainer(settings, inputs, folder / f"{name}.pt", world, **options)

        # Images of process 1 are not numbers in the ninth step.
        broken = trainer("broken")
        batches = broken.data.train_batches

        def spoilt(recipe, seed, epoch, first, *where):
            for step, batch in enumerate(batches(recipe, seed, epoch, first, *where), first):
                images = batch.images * (float("nan") if mine and (epoch, step) == (1, 2) else 1.0)
                yield replace(batch, images=images)

        broken.data.train_batches = spoilt
        try:
            broken.run()
        except TrainingError as error:
            found["broken"] = str(error)
        world.wait()

        # Its first image of the validation is not, either.
        unknown = trainer("unknown")
        validation = unknown.data.eval_batches

        def spoilt_validation(*where):
            for batch in validation(*where):
                images = batch.images.clone()
                images[: int(mine)] = float("nan")
                yield replace(batch, images=images)

        unknown.data.eval_batches = spoilt_validation
        try:
            unknown.run()
        except TrainingError as error:
            found["unknown"] = str(error)
        world.wait()

        # The device of process 1 holds four images.
        log = []
        crowded = trainer("crowded", log=log.append)
        losses = crowded.gradients._losses

        def too_many(model, images, targets):
            if mine and len(images) > 4:
                raise torch.OutOfMemoryError("by the test")
            return losses(model, images, targets)

        crowded.gradients._losses = too_many
        follow_gradients(crowded, gradients)
        crowded.run()
        found["crowded"] = {
            **outcome(crowded),
            "log": log,
            "pieces": crowded.gradients.pieces,
            "steps": len(crowded.data.seen),
        }

        # Each process has met an image of its own that it cannot read, and both a third one.
        unread = trainer("unread")
        unread.data.unreadable = lambda: ["both.png", f"{world.rank}.png"]
        unread.run()
        progress = unread.progress
        found["unread"] = progress.unreadable, [r["unreadable_images"] for r in progress.history]

        # Process 1 is asked to stop after the ninth step, and both are run again.
        undisturbed = trainer("undisturbed")
        undisturbed.run()
        found["undisturbed"] = outcome(undisturbed)
        asked = []

        def ask(event):
            if mine and (event.epoch, event.step) == (1, 2):
                asked.append(event)

        stopped = trainer("stopped", observe=ask, asked_to_stop=lambda: bool(asked))
        try:
            stopped.run()
        except TrainingStopped as error:
            found["stopped"] = str(error)
        written = (folder / "stopped.pt").is_file()
        again = trainer("stopped")
        again.run()
        found["again"] = {
            **outcome(again),
            "written": written,
            "steps": [len(each.data.seen) for each in (stopped, again)],
        }

        # Both are killed, and the last checkpoint is damaged; once process 1 alone cannot read it.
        try:
            trainer("torn", observe=cut_off).run()
        except CutOffError:
            world.wait()
        load = checkpoints.load_checkpoint

        def fail(path, key):
            raise CheckpointError(f"{path} cannot be read by one")

        if mine:
            checkpoints.load_checkpoint = fail
        try:
            trainer("torn").run()
        except CheckpointError as error:
            found["unread by one"] = str(error)
        checkpoints.load_checkpoint = load
        world.wait()
        if not mine:
            content = (folder / "torn.pt").read_bytes()
            (folder / "torn.pt").write_bytes(content[:-2000])
        world.wait()
        log = []
        mended = trainer("torn", log=log.append)
        mended.run()
        found["mended"] = {
            **outcome(mended),
            "steps": len(mended.data.seen),
            "log": [line for line in log if "torn" in line],
        }

        going_on = trainer("alone")
        follow_gradients(going_on, gradients)
        going_on.run()
        found["going on"] = {**outcome(going_on), "steps": len(going_on.data.seen)}
        together = trainer("together", observe=cut_off)
        follow_gradients(together, gradients)
        try:
            together.run()
        except CutOffError:
            world.wait()
        torch.save(found, folder / f"{world.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
