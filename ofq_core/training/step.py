"""Forward and backward of one batch: its pieces, its processes, its number format."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ofq_core.compiling import blocks_of, not_compiled
from ofq_core.data import Batch
from ofq_core.distributed import World
from ofq_core.errors import TrainingError
from ofq_core.nn import HeldWeights, WeightQuantizer, set_whole_batch
from ofq_core.precision import matrix_precision
from ofq_core.seeds import derive_seed
from ofq_core.settings import DistillSettings, RunSettings
from ofq_core.training.distill import Losses, Teacher, distillation_loss

# No buffer of a model changes in training. torch 2.13 gave the option another name.
_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_SYNC = "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"


def _parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    sync: dict[str, Any] = {_SYNC: False}
    own = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, own, gradient_as_bucket_view=True, **sync)


class Gradients:
    """Fills the gradients of the mean loss over a batch that is spread over processes and pieces.

    A piece is what one forward sees. The loss of a piece is its sum over images divided by the
    size of the whole batch, so the gradients are those of one forward over all of it, up to the
    order of sums, whatever the number of processes and pieces. LSQ's gradient scale is told the
    size of the batch that it must count (`fidelity.lsq_group`).

    Draws inside the models (dropout, stochastic depth) depend on the seed, the epoch, the step and
    the process alone.

    Args:
        model: on the world's device. Process 0 gives its parameters to all.
        log: told when a batch had to be cut into smaller pieces.

    Attributes:
        micro_batch: most images per forward; None until one must be cut.
        pieces: forwards of the last step.
    """

    def __init__(
        self,
        settings: RunSettings,
        model: nn.Module,
        teacher: Teacher | None,
        world: World,
        log: Callable[[str], None],
    ) -> None:
        self.model, self.teacher, self.world, self.log = model, teacher, world, log
        self._answers = None if teacher is None else teacher.cache
        self.seed, self.batch_size = settings.seed, settings.recipe.batch_size
        self.micro_batch, self.pieces = world.micro_batch, 1
        # Without a teacher both heads learn the labels with equal weight.
        distill = settings.distill or DistillSettings()
        self._loss: Callable[..., Losses] = partial(
            distillation_loss,
            hard_weight=distill.hard_weight,
            soft_weight=distill.soft_weight,
            temperature=distill.temperature,
            label_smoothing=settings.recipe.label_smoothing,
        )
        self._precision = partial(matrix_precision, settings.recipe.precision, world.device)
        self._global_groups = settings.fidelity.lsq_group == "global"
        self._format = (
            torch.channels_last if settings.recipe.channels_last else torch.preserve_format
        )
        self._whole, self._drawn = 1.0, 0
        self._parameters = list(model.parameters())
        self._quantizers = [m for m in model.modules() if isinstance(m, WeightQuantizer)]
        self._compiled = any(block._compiled_call_impl for block in blocks_of(model))
        self._weights = HeldWeights(model)
        self._ready = world.size == 1
        self._forward_model: nn.Module = model
        if world.size > 1:
            self._forward_model = _parallel(model, world.device)

    def fill(self, batch: Batch, epoch: int, step: int) -> Tensor:
        """Set the gradients of a step; the earlier ones are dropped.

        Returns:
            This process's part of total, hard and soft loss: FP64, shape (3,). The sum over
            processes is the mean over the whole batch.

        Raises:
            TrainingError: not even one image fits into memory.
        """
        if self._answers is not None:
            self._answers.enter(epoch, self._compiled)
        seed = derive_seed(self.seed, "step", epoch, step, self.world.rank)
        if not self._ready:
            self._rehearse(batch, seed)
        while True:
            losses = self._attempt(batch, seed)
            if losses is not None:
                return losses
            if self.world.size > 1:
                # Others may be waiting in the middle of the backward: no step can be repeated.
                raise self._too_small(len(batch.images))
            self._halve(len(batch.images))

    def repeat_forward(self, batch: Batch) -> None:
        """The forwards of the last step once more, of this process alone."""
        self._seed_draws(self._drawn)
        self._weights.clear()
        with not_compiled(self.model):
            for images, targets in self._cut(batch):
                self._losses(self.model, images, targets)

    def finish(self) -> None:
        """Leave the model as it was found, and the teacher's answers on disk."""
        if self._answers is not None:
            self._answers.finish()
        self._count_batch(self.batch_size, self.batch_size)

    def _rehearse(self, batch: Batch, seed: int) -> None:
        """Throw-away steps before the first real one of several processes.

        They find, together, pieces that fit into memory. And after its first backward
        DistributedDataParallel lays its buckets out anew, which may change the order of sums: it
        must do so before the first step of a resumed run as of any other.
        """
        while any(self.world.gathered(self._attempt(batch, seed, together=False) is None)):
            self._halve(max(self.world.gathered(len(batch.images))))
        if self._attempt(batch, seed) is None:
            raise self._too_small(len(batch.images))
        self._ready = True

    def _attempt(self, batch: Batch, seed: int, together: bool = True) -> Tensor | None:
        """`fill` once; None when memory ran out. together: add over processes."""
        try:
            return self._fill(batch, seed, together)
        except torch.OutOfMemoryError:
            pass  # the exception holds the tensors of the attempt: free memory after it
        self._drop_gradients()
        self._weights.clear()
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _fill(self, batch: Batch, seed: int, together: bool) -> Tensor:
        self._seed_draws(seed)
        self._drop_gradients()
        count, world = len(batch.images), self.world
        pieces = self._cut(batch)
        self.pieces = len(pieces)
        sums: Tensor | None = None
        # Compiled blocks take quantized weights as they are: what quantizers do beside their
        # formula (codes for the tracker, CGA's mask) stays out of the graph.
        if len(pieces) > 1 or self._compiled:
            self._weights.hold()
        for index, (piece, targets) in enumerate(pieces):
            self._count_batch(count, len(piece))
            part = len(piece) / self.batch_size
            last = index == len(pieces) - 1
            if last:
                self._weights.release()
            with self._alone(world.size > 1 and not (last and together)):
                losses = self._losses(self._forward_model, piece, targets)
                # DistributedDataParallel takes the mean over processes, but the loss is a sum.
                weight = part * world.size
                total = losses.total if weight == 1.0 else losses.total * weight
                total.backward()  # type: ignore[no-untyped-call]
            values = torch.stack([value.detach().double() for value in losses])
            values = values if part == 1.0 else values * part
            sums = values if sums is None else sums + values
        self._weights.clear()
        assert sums is not None
        return sums

    def _cut(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Images and targets of every piece; their sizes differ by at most one."""
        count = len(batch.images)
        images = batch.images.to(memory_format=self._format)
        pieces = -(-count // (self.micro_batch or count))
        return list(
            zip(images.tensor_split(pieces), batch.targets.tensor_split(pieces), strict=True)
        )

    def _losses(self, model: nn.Module, images: Tensor, targets: Tensor) -> Losses:
        with self._precision():
            soft = None if self.teacher is None else self.teacher(images)
            outputs = model(images)
        losses = self._loss(outputs, targets, soft)
        if soft is None:
            return losses
        # A class with the teacher's logit -inf has probability 0: the loss alone would not tell.
        unknown = ~soft.isfinite().all()
        return losses._replace(soft=losses.soft.detach().masked_fill(unknown, torch.nan))

    def _alone(self, alone: bool) -> contextlib.AbstractContextManager[Any]:
        """No addition over processes in this backward."""
        if alone and isinstance(self._forward_model, DistributedDataParallel):
            return self._forward_model.no_sync()
        return contextlib.nullcontext()

    def _seed_draws(self, seed: int) -> None:
        # Not torch.manual_seed: for devices that are not in use it formats a stack trace each time.
        self._drawn = seed
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        for quantizer in self._quantizers:
            quantizer.gradient = None

    def _count_batch(self, share: int, piece: int) -> None:
        whole = (self.batch_size if self._global_groups else share) / piece
        if whole != self._whole:
            set_whole_batch(self.model, whole)
            self._whole = whole

    def _halve(self, count: int) -> None:
        most = min(self.micro_batch or count, count)
        if most == 1:
            raise self._too_small(count)
        self.micro_batch = -(-most // 2)
        self.log(f"out of memory with {most} images per forward: going on with {self.micro_batch}")

    def _too_small(self, count: int) -> TrainingError:
        most = min(self.micro_batch or count, count)
        advice = "one is too many" if most == 1 else f"set OFQ_MICRO_BATCH below {most}"
        return TrainingError(
            f"{self.world.device}: out of memory with {most} images per forward; {advice}"
        )
