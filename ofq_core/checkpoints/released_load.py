"""From a file in the released layout to a model, and what became of every tensor of the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ofq_core.checkpoints.released_facts import ReleasedFacts, read_facts
from ofq_core.checkpoints.released_files import ReleasedFile, read_released
from ofq_core.checkpoints.released_fill import fill_released
from ofq_core.checkpoints.released_keys import CLIP, Layout, our_names
from ofq_core.checkpoints.size import check_size
from ofq_core.models import QuantPlan, build_model, convert, pad_before_shift
from ofq_core.settings import BUNDLES


@dataclass(frozen=True)
class ReleasedReport:
    """What became of every tensor of a file.

    mapped: released key -> names of our tensors that hold its values, in a row. shapes: released
    key -> shape. constants: released key -> its value, checked, for tensors that hold no freedom.
    clips: released key -> clipping constants other than 2, which the model follows. parameters:
    trained values of our model. released_parameters: what the released code counts, which is those
    plus one clipping constant per StatsQ. reproduced: largest absolute difference to the
    `eval_logits` for `input` that an .npz file brings with it, or None. taken: the key of the file
    that the weights were under, or empty. left_over: keys of the file that were not taken.
    """

    source: str
    mapped: dict[str, tuple[str, ...]]
    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, str]
    clips: dict[str, float]
    parameters: int
    released_parameters: int
    reproduced: float | None
    taken: str
    left_over: tuple[str, ...]

    def summary(self) -> str:
        """A few lines for the log."""
        ours = sum(len(names) for names in self.mapped.values())
        text = (
            f"{len(self.mapped)} tensors mapped to {ours}, {len(self.constants)} constants "
            f"checked, {', '.join(self.left_over) or 'nothing'} left over\n"
            f"{self.parameters:,} parameters ({self.released_parameters:,} as the released code "
            "counts, with one clipping constant per StatsQ)"
        )
        if self.clips:
            low, high = min(self.clips.values()), max(self.clips.values())
            text += (
                f"\n{len(self.clips)} StatsQ have clipping constants other than {CLIP:g} "
                f"({low:.4f} to {high:.4f}); the model follows them"
            )
        if self.reproduced is not None:
            text += f"\nlogits of the file reproduced to {self.reproduced:.1e}"
        return text

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": self.source,
            "mapped": {
                key: {"ours": list(names), "shape": list(self.shapes[key])}
                for key, names in self.mapped.items()
            },
            "constants": self.constants,
            "clips": self.clips,
            "taken": self.taken,
            "left_over": list(self.left_over),
            "parameters": self.parameters,
            "released_parameters": self.released_parameters,
            "reproduced": self.reproduced,
        }


@dataclass(frozen=True)
class ReleasedModel:
    """A model filled from a released-style file, in evaluation mode on the CPU.

    facts: sizes and bits. file: what the file says of itself, such as epoch and arguments.
    """

    model: nn.Module
    report: ReleasedReport
    facts: ReleasedFacts
    file: ReleasedFile


def load_released(
    path: Path | str,
    wbits: int | None = None,
    abits: int | None = None,
    num_heads: int | None = None,
) -> ReleasedModel:
    """Read a released checkpoint, a bare state dict or an .npz file into a model built for it.

    Args:
        wbits, abits: bits, where the file does not say them.
        num_heads: heads of plain DeiT, where the file does not say them.

    Raises:
        CheckpointError: unreadable, unsafe, no DeiT and no Swin, or a tensor that does not fit.
        ModelError, SettingsError: sizes or bits that no model can have.
    """
    file = read_released(Path(path))
    facts = read_facts(file, wbits, abits, num_heads)
    check_size(facts.model, file.state, str(file.path))
    model = build_model(facts.model, seed=0)
    convert(model, QuantPlan.from_settings(facts.quant, BUNDLES["released"]))
    pad_before_shift(model)
    layout = fill_released(model, file.state, str(file.path))
    model.eval()
    return ReleasedModel(model, _report(model, layout, file), facts, file)


def _report(model: nn.Module, layout: Layout, file: ReleasedFile) -> ReleasedReport:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    clips = {clip.key: float(file.state[clip.key]) for clip in layout.clips}
    constants = {c.key: f"{tuple(c.value.shape)}, equal to ours" for c in layout.constants}
    constants |= {key: f"{CLIP:g}" for key, value in clips.items() if value == CLIP}
    return ReleasedReport(
        source=str(file.path),
        mapped={entry.key: tuple(our_names(entry)) for entry in layout.entries},
        shapes={entry.key: entry.shape for entry in layout.entries},
        constants=constants,
        clips={key: value for key, value in clips.items() if value != CLIP},
        parameters=parameters,
        released_parameters=parameters + len(layout.clips),
        reproduced=_reproduced(model, file),
        taken=file.taken,
        left_over=file.left,
    )


@torch.inference_mode()
def _reproduced(model: nn.Module, file: ReleasedFile) -> float | None:
    images, logits = file.arrays.get("input"), file.arrays.get("eval_logits")
    if images is None or logits is None:
        return None
    return float((model(images) - logits).abs().max())
