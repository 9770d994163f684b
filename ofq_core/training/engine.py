"""The training loop: deterministic, resumable, the same for every method."""

from __future__ import annotations

import copy
import errno
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ofq_core import checkpoints
from ofq_core.compiling import compile_where_it_pays
from ofq_core.data import Batch, Data, positions
from ofq_core.data.order import mix_group
from ofq_core.data.rows import shown
from ofq_core.distributed import World
from ofq_core.errors import CheckpointError, ModelError, TrainingError, TrainingStopped
from ofq_core.evaluation import Evaluation, evaluate
from ofq_core.finite import first_not_finite, not_finite_tensor
from ofq_core.settings import RunSettings
from ofq_core.training.cga import ConfidenceGuidedAnnealing, held_weights
from ofq_core.training.distill import Teacher
from ofq_core.training.method import MethodHooks
from ofq_core.training.optimizer import make_optimizer
from ofq_core.training.progress import Progress, Running, StepEvent
from ofq_core.training.schedule import ANNEAL, Schedule
from ofq_core.training.step import Gradients
from ofq_core.training.tracker import OscillationTracker

_OF_THE_MACHINE = (
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
)


def _ignore(event: object) -> None:
    pass


def _never() -> bool:
    return False


class _Agreed(NamedTuple):
    """What all processes know of a step: its losses, and what follows it."""

    losses: list[float]
    save: bool
    stop: bool


class Trainer:
    """Train one model as its settings say.

    Args:
        model: converted and calibrated, or full precision; moved to the world's device.
        teacher: None trains on the labels alone.
        checkpoint: where the run's checkpoint is, and beside it the one before; the run goes on
            from the newest that is whole.
        observe: called after each step.
        world: the processes that train together; one by default. Only its main process writes.
        log: told what a user should know.
        asked_to_stop: looked at in every step; once true it must stay so. True in any process
            stops all of them after the step, with a checkpoint.
        key: hash of all that decides the run, by default of its settings; a checkpoint with another
            one is not taken.

    The order of images, their augmentation and every other draw depend on the seed and the epoch
    or step alone, so a resumed run is bit-identical to an undisturbed one.

    Raises:
        DataError: the batch is larger than the training split, or smaller than the world.
    """

    def __init__(
        self,
        settings: RunSettings,
        model: nn.Module,
        teacher: Teacher | None,
        data: Data,
        checkpoint: Path,
        observe: Callable[[StepEvent], None] = _ignore,
        world: World | None = None,
        log: Callable[[str], None] = _ignore,
        asked_to_stop: Callable[[], bool] = _never,
        key: str | None = None,
    ) -> None:
        self.settings, self.recipe = settings, settings.recipe
        self.model, self.teacher, self.data = model, teacher, data
        self.checkpoint, self.observe, self.log = checkpoint, observe, log
        self.asked_to_stop = asked_to_stop
        self.key = settings.sha256() if key is None else key
        self.world = world = world or World()
        recipe, fidelity = settings.recipe, settings.fidelity
        self.batch_size, self.steps = recipe.batch_size, data.steps(recipe)
        positions(recipe.batch_size, world.share, mix_group(recipe))
        self.schedule = Schedule.from_settings(recipe, fidelity, self.steps)
        # Post-training quantization has no step to take.
        self.epochs = len(self.schedule.phases) if settings.quant.trains else 0
        models = [model] if teacher is None else [model, teacher.model]
        for each in models:
            self._place(each)
        forwards = self.epochs * self.steps * self.batch_size
        compile_where_it_pays(models, recipe.compile, forwards, world.device, log)
        self.optimizer = make_optimizer(model, recipe, fidelity.relative_bias_decay)
        self.gradients = Gradients(settings, model, teacher, world, log)
        self.averaged: AveragedModel | None = None
        if recipe.ema_decay is not None:
            average = get_ema_multi_avg_fn(recipe.ema_decay)  # type: ignore[no-untyped-call]
            self.averaged = AveragedModel(model, multi_avg_fn=average).eval()
        self.tracker = OscillationTracker(
            model,
            every=recipe.oscillation_every,
            window=self._window() if self.epochs else None,
            total=world.total if world.size > 1 else None,
        )
        self.hooks = MethodHooks(model, self.tracker.weights)
        for weight in self.tracker.weights:
            weight.quantizer.observed_range = fidelity.code_range == "observed"
        self.annealing = ConfidenceGuidedAnnealing(
            self.optimizer, held_weights(model, fidelity), settings.quant.boundary_range
        )
        self.progress = Progress()
        # Of the weights after the last step, whichever epoch is selected.
        self.oscillation: dict[str, float] | None = None
        self.oscillation_layers: dict[str, dict[str, Any]] = {}
        self._saved = time.monotonic()

    def run(self) -> Progress:
        """Train to the end, then load the selected weights into the model.

        Raises:
            TrainingError: the loss, a weight, a moment of the optimizer or a logit of the
                validation is not finite, or memory is too small for one image.
            CheckpointError: the checkpoint cannot be written, or the machine cannot read it.
            TrainingStopped: somebody asked for it before the last epoch was over.
        """
        self._check_finite()
        self._resume()
        self._saved = time.monotonic()
        while self.progress.epoch < self.epochs:
            self._epoch(self.progress.epoch)
            last = self.progress.epoch == self.epochs
            due = self._seconds_since_save() >= self.recipe.checkpoint_seconds
            wishes = self.world.gathered((due, self.asked_to_stop()))
            stop = any(asked for _, asked in wishes)
            # The clock is the main process's.
            if last or stop or wishes[0][0]:
                self._save()
            if stop and not last:
                self._stop()
        if not self.epochs:
            val = self._validate()
            self._select(0, None if val is None else val.top1)
        self.annealing.stop()
        self.gradients.finish()
        self.tracker.finish()
        self.oscillation = self.tracker.summary()
        self.oscillation_layers = self.tracker.layers()
        self.model.load_state_dict(self.progress.best_state)
        return self.progress

    @property
    def previous(self) -> Path:
        """Where the checkpoint before the last is."""
        return self.checkpoint.with_suffix(f".previous{self.checkpoint.suffix}")

    @property
    def kept_model(self) -> nn.Module:
        """The model that is evaluated and selected: the student or its moving average."""
        return self.model if self.averaged is None else self.averaged.module

    def _window(self) -> tuple[int, int]:
        """First step of the last phase, and all steps; a run without one ends with a tenth."""
        steps = self.epochs * self.steps
        last = self.schedule.last_phase * self.steps
        return (last or steps - max(1, steps // 10)), steps

    def _place(self, model: nn.Module) -> None:
        model.to(self.world.device)
        if self.recipe.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _epoch(self, epoch: int) -> None:
        """Train an epoch, or what is left of it, and evaluate."""
        progress, running, phases = self.progress, self.progress.running, self.schedule.phases
        annealing = phases[epoch] == ANNEAL and self.settings.quant.cga
        if annealing:
            self.annealing.start()
        if running.steps == 0:
            if phases[epoch] == ANNEAL and phases[: epoch + 1].count(ANNEAL) == 1:
                self.tracker.restart()
            running.counts = self.tracker.counts()
            self.tracker.samples.start_epoch()
        self.model.train()
        first, began, before = running.steps, time.monotonic(), running.seconds
        batches = self.data.train_batches(
            self.recipe, self.settings.seed, epoch, first, self.world.share, self.world.device
        )
        for step, batch in enumerate(batches, first):
            agreed = self._step(batch, epoch, step, annealing)
            running.seconds = before + time.monotonic() - began
            rate = (running.steps - first) * self.batch_size / (running.seconds - before)
            loss = running.losses[0] / running.steps
            val_top1 = progress.history[-1]["val_top1"] if progress.history else None
            self.observe(StepEvent(epoch, self.epochs, step, self.steps, rate, loss, val_top1))
            more = running.steps < self.steps
            # Whoever asks may not wait until a validation is over: save before it, too.
            if agreed.stop or (agreed.save and more):
                self._save()
            if agreed.stop and more:
                self._stop()
        progress.seconds += running.seconds
        self._finish_epoch(epoch, phases[epoch], annealing)

    def _step(self, batch: Batch, epoch: int, step: int, annealing: bool) -> _Agreed:
        """One optimizer step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(epoch, step)
        due = 0 < self.recipe.checkpoint_seconds <= self._seconds_since_save()
        self.tracker.begin_step()
        agreed = self._together(self.gradients.fill(batch, epoch, step), due)
        losses = agreed.losses
        if not all(map(math.isfinite, losses)):
            self._stop_on(losses, batch)
        progress, running = self.progress, self.progress.running
        whole = self.epochs * self.steps
        self.hooks.add_penalties(progress.step / whole)
        self.tracker.before_update()
        if annealing:
            self.annealing.step()
        else:
            self.optimizer.step()
        self.hooks.after_step((progress.step + 1) / whole)
        self.tracker.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        running.losses = [a + b for a, b in zip(running.losses, losses, strict=True)]
        if annealing:
            running.frozen = running.frozen.to(self.annealing.frozen) + self.annealing.frozen
        progress.step += 1
        running.steps += 1
        return agreed

    def _together(self, losses: Tensor, due: bool) -> _Agreed:
        """Losses of the whole batch; the main process's clock decides when to save."""
        asked = self.asked_to_stop()
        if self.world.size == 1:
            return _Agreed(losses.tolist(), due, asked)
        wishes = losses.new_tensor([float(due and self.world.main), float(asked)])
        values = self.world.total(torch.cat([losses, wishes])).tolist()
        return _Agreed(values[:3], values[3] > 0, values[4] > 0)

    def _stop(self) -> NoReturn:
        """After `_save`, in every process."""
        # A launcher ends the others with the first that leaves: not while the main one writes.
        self.world.wait()
        progress = self.progress
        raise TrainingStopped(
            f"stopped on request after epoch {progress.epoch}, step {progress.running.steps}; run "
            "the same command again to go on"
        )

    def _stop_on(self, losses: list[float], batch: Batch) -> NoReturn:
        """Every process comes here in the same step: all have the losses of the whole batch."""
        modules: dict[str, nn.Module] = {"": self.model}
        if self.teacher is not None:
            modules["teacher."] = self.teacher.model
        found = first_not_finite(modules, lambda: self.gradients.repeat_forward(batch))
        where = self._agreed(found)
        blamed = f"first in {where}" if where else "in the loss alone"
        loss = next(value for value in losses if not math.isfinite(value))
        raise self._diverged(f"loss = {loss} at {self._place_in_time()}, {blamed}")

    def _check_finite(self) -> None:
        """Every process must call; all stop when one of them holds what is not finite."""
        wrong = self._agreed(not_finite_tensor(self._named_tensors()))
        if wrong is None:
            return
        if not self.progress.step:
            raise TrainingError(f"{wrong} before the first step")
        raise self._diverged(f"{wrong} after {self._place_in_time()}")

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Weights, their average, and the optimizer's state, by names that say whose it is."""
        yield from self.model.state_dict().items()
        if self.averaged is not None:
            for name, value in self.averaged.module.state_dict().items():
                yield f"the average of {name}", value
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield f"{key} of {name}", value

    def _agreed(self, wrong: str | None) -> str | None:
        """What the first process that has something to say says."""
        return next((each for each in self.world.gathered(wrong) if each is not None), None)

    def _place_in_time(self) -> str:
        return f"step {self.progress.step} (epoch {self.progress.epoch})"

    def _diverged(self, what: str) -> TrainingError:
        kept = f"; last good checkpoint: {self.checkpoint}" if self.checkpoint.exists() else ""
        return TrainingError(f"{what}{kept}. Lower recipe.lr = {self.recipe.lr:g}.")

    def _finish_epoch(self, epoch: int, phase: str, annealing: bool) -> None:
        progress, running = self.progress, self.progress.running
        self._check_finite()
        total, hard, soft = (value / self.steps for value in running.losses)
        self._collect_unreadable()
        val = self._validate()
        progress.history.append(
            {
                "epoch": epoch,
                "phase": phase,
                "lr": self.schedule.rate(epoch),
                "train_loss": total,
                "train_hard_loss": hard,
                "train_soft_loss": soft,
                "val_loss": None if val is None else val.loss,
                "val_top1": None if val is None else val.top1,
                "seconds": running.seconds,
                "images_per_second": self.steps * self.batch_size / running.seconds,
                "oscillation_share": self.tracker.share(),
                "flip_rate": self.tracker.flips_per_step(*running.counts),
                "free_share": self.annealing.free_share(int(running.frozen), self.steps)
                if annealing
                else None,
                "unreadable_images": len(progress.unreadable),
                **self.tracker.epoch_figures(),
            }
        )
        self._select(epoch, None if val is None else val.top1)
        progress.epoch, progress.running = epoch + 1, Running()

    def _validate(self) -> Evaluation | None:
        """Loss and accuracy on the validation split; None without one."""
        if not self.data.split_size("val"):
            return None
        share, device, precision = self.world.share, self.world.device, self.recipe.precision
        try:
            return evaluate(
                self.kept_model, self.data, "val", self.batch_size, share, device, precision
            )
        except ModelError as error:
            if not self.progress.step:
                raise
            raise self._diverged(f"after {self._place_in_time()}, {error}") from error

    def _select(self, epoch: int, top1: float | None) -> None:
        """Take this epoch if it may compete and is the best so far; on a tie the later one."""
        progress = self.progress
        if self.epochs and epoch < self.schedule.last_phase:
            return
        if top1 is None or progress.best_top1 is None or top1 >= progress.best_top1:
            progress.best_epoch, progress.best_top1 = epoch, top1
            state = self.kept_model.state_dict()
            progress.best_state = {key: value.clone() for key, value in state.items()}

    def _collect_unreadable(self) -> None:
        """Learn from all processes which images could not be read; say so when there are more."""
        known = set(self.progress.unreadable)
        names = known.union(*self.world.gathered(self.data.unreadable()))
        if len(names) > len(known):
            self.log(f"{len(names)} images cannot be read so far, such as {shown(min(names))}")
        self.progress.unreadable = sorted(names)

    def _seconds_since_save(self) -> float:
        return time.monotonic() - self._saved

    def _save(self) -> None:
        """Write the checkpoint and keep the one before; every process must call, the main one
        writes."""
        self._check_finite()
        self._collect_unreadable()
        self._saved = time.monotonic()
        if not self.world.main:
            return
        content = {"format": checkpoints.FORMAT, "settings_sha256": self.key, **self._state()}
        checkpoints.save(self.checkpoint, content, self.previous)

    def _state(self) -> dict[str, Any]:
        """All that a resumed run needs; tensors are the run's own."""
        return {
            "progress": self.progress.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "tracker": self.tracker.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Inverse of `_state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.tracker.load_state_dict(state["tracker"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.progress = Progress.from_state_dict(state["progress"])

    def _resume(self) -> None:
        """Go on from the newest checkpoint that is whole, else from the start, and say so.

        One that cannot be used is put aside. All processes take the same one.

        Raises:
            CheckpointError: it is not the file's fault that it cannot be read.
        """
        name, fresh = self.settings.name, None
        for path in (self.checkpoint, self.previous):
            if not self.world.told(path.exists()):
                continue
            if fresh is None:
                fresh = copy.deepcopy(self._state())
            found = self.world.gathered(self._take(path, fresh))
            if all(wrong is None for wrong in found):
                progress = self.progress
                self.log(
                    f"{name}: cut off before, going on after epoch {progress.epoch}, step "
                    f"{progress.running.steps} from {path}"
                )
                return
            rank, wrong = next((rank, wrong) for rank, wrong in enumerate(found) if wrong)
            if rank or not wrong.damaged:
                # Where the main process can read it, the file is good.
                raise CheckpointError(wrong.message)
            self._restore(fresh)
            aside = path.with_suffix(".unusable")
            if self.world.main:
                path.rename(aside)
            self.log(f"{name}: {wrong.message}; not used, kept as {aside} until the run is done")
        if fresh is not None:
            self.log(f"{name}: no other checkpoint is there, starting afresh")

    def _take(self, path: Path, fresh: dict[str, Any]) -> _Unusable | None:
        """Restore the run from a checkpoint, or say why that cannot be; then its state is mixed."""
        try:
            state = checkpoints.load_checkpoint(path, self.key)
            _check_alike(state["model"], fresh["model"], "model")
            _check_alike(state["averaged"], fresh["averaged"], "averaged")
            self._restore(state)
            self._check_restored(fresh)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Whatever a damaged file may lead to, such as a RuntimeError of load_state_dict.
            text = str(error).partition("\n")[0]
            if not isinstance(error, CheckpointError):
                text = f"{path}: damaged checkpoint ({type(error).__name__}: {text})"
            return _Unusable(text.removesuffix("; delete it to start afresh"), not _machine(error))
        return None

    def _check_restored(self, fresh: dict[str, Any]) -> None:
        """Raise ValueError where parts of what was restored contradict each other."""
        progress, steps = self.progress, self.progress.running.steps
        whole = progress.epoch * self.steps + steps
        inside = 0 <= progress.epoch <= self.epochs and 0 <= steps <= self.steps
        if not inside or progress.step != whole or len(progress.history) != progress.epoch:
            raise ValueError(
                f"epoch {progress.epoch}, step {steps} and {len(progress.history)} rows of history "
                f"do not make {progress.step} steps"
            )
        for name, parameter in self.model.named_parameters():
            shapes = {k: v.shape for k, v in self.optimizer.state.get(parameter, {}).items()}
            moments = dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter.shape)
            if shapes and shapes != {"step": torch.Size(), **moments}:
                raise ValueError(f"the optimizer's state of {name} is not that of AdamW")
        best = progress.best_state
        _check_alike(best, fresh["model"] if progress.best_epoch >= 0 else {}, "best_state")
        wrong = not_finite_tensor([*self._named_tensors(), *best.items()])
        if wrong is not None:
            raise ValueError(wrong)


class _Unusable(NamedTuple):
    """Why a checkpoint cannot be used. damaged: False where the machine is to blame."""

    message: str
    damaged: bool


def _machine(error: BaseException | None) -> bool:
    """Whether a disk or memory is behind an error, and not what is in the file.

    Not every OSError: a damaged file may send its reader to a place that there is not (EINVAL).
    """
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _OF_THE_MACHINE:
            return True
        error = error.__cause__
    return False


def _check_alike(saved: dict[str, Tensor] | None, own: dict[str, Tensor] | None, what: str) -> None:
    """Raise ValueError unless both have tensors of the same names, shapes and dtypes."""
    if saved is None or own is None:
        if saved is not own:
            raise ValueError(f"{what} is {'missing' if saved is None else 'not of this run'}")
        return
    if saved.keys() != own.keys():
        raise ValueError(f"{what} has other keys: {sorted(saved.keys() ^ own.keys())[0]}")
    for key, value in own.items():
        if (saved[key].shape, saved[key].dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"{what}.{key} is {saved[key].dtype} of shape {tuple(saved[key].shape)}, expected "
                f"{value.dtype} of shape {tuple(value.shape)}"
            )
