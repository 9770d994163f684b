"""What the teacher said to the same images in an earlier run.

Which images a step sees depends on the seed and the epoch alone, not on the method or its bits, so
the students of one seed ask the teacher the same questions.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ofq_core import checkpoints
from ofq_core.checkpoints.weights import read_content
from ofq_core.errors import CheckpointError


class TeacherCache:
    """Logits on disk by the content of the images, a file per epoch; exact, never required.

    An answer is taken only for the very bits of the images that were asked about. A file that is
    missing, damaged or of other images costs the teacher's time, nothing else; damage is told of.
    Several processes may share a folder: files appear whole, and the last writer's stays.

    Args:
        folder: of one teacher, number format and machine type: whatever may change its logits for
            the same images must be in the folder's name, as must the number of this process.
        log: told of a file that cannot be used.
    """

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        self.folder, self.log = folder, log
        self._path: Path | None = None
        self._known: dict[str, Tensor] = {}
        self._asked: dict[str, Tensor] = {}

    def enter(self, epoch: int, compiled: bool = False) -> None:
        """Read what is known of an epoch, and write what the one before has asked.

        Args:
            compiled: whether the teacher is, which may change the last bits of its answers.
        """
        path = self.folder / f"{epoch}{'-compiled' if compiled else ''}.pt"
        if path == self._path:
            return
        self.finish()
        self._path = path
        if not path.exists():
            return
        try:
            answers, own = read_content(path)
            if not own:
                raise CheckpointError(f"{path}: damaged (another program wrote it)")
            self._known = answers
        except CheckpointError as error:
            self.log(f"{error}: the teacher answers anew")

    def logits(self, images: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """The teacher's answer (batch, classes) for images (batch, channels, height, width).

        Args:
            ask: the teacher itself.
        """
        digest = _digest(images)
        answer = self._known.get(digest)
        if answer is not None:
            return answer.to(images.device)
        logits = ask(images)
        # What is not finite is asked again, so that the search for its origin finds the teacher.
        if self._path is not None and bool(logits.isfinite().all()):
            self._asked[digest] = logits.cpu()
        return logits

    def finish(self) -> None:
        """Write what was asked anew; a full disk costs nothing."""
        if self._path is not None and self._asked:
            with contextlib.suppress(CheckpointError):
                checkpoints.save(self._path, self._known | self._asked)
        self._path = None
        self._known, self._asked = {}, {}


def _digest(tensor: Tensor) -> str:
    held = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{held.dtype}/{tuple(held.shape)}/".encode())
    digest.update(held.view(torch.uint8).numpy().data)
    return digest.hexdigest()
