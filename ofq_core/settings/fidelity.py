"""Where the released code differs from what is described, one switch each (spec 3.5, 5, 7, 9)."""

from __future__ import annotations

from typing import Any, Literal

from ofq_core.explain import Model
from ofq_core.settings.types import Flag


class FidelitySettings(Model):
    """One switch per behaviour of the released code; the defaults are `fidelity=described`.

    What each changes and why it exists is in docs/fidelity.md.

    initialization: the student starts from every tensor of the teacher (full), or without those
        that the released code loses: the attention projection, q, k and v without QKR, Swin's
        relative position bias; Swin's reduction gets a random bias.
    qk_bias: QKR folds the query bias into the key side exactly, or drops it.
    teacher_mode: mode of the teacher's modules (train: dropout and stochastic depth are active).
    teacher_head: the soft target is the teacher's inference output (mean of a distilled model's
        heads) or its class head alone.
    cga_targets: which matrices CGA holds: all (the QKR product too), linear (all but that product),
        released (linear; in Swin without QKR none, for want of a matching name).
    code_range: CGA counts the thresholds of the whole grid, or only those between codes that occur.
    swin_scale_axis: Swin's MLP and reduction have one activation scale per token, or per image
        column.
    relative_bias_decay: weight decay acts on Swin's relative position bias.
    dead_biases: keep the second biases of k and of the query-key product, which cannot act.
    cooldown: after the cosine come `recipe.cooldown_epochs` at the minimum learning rate (310
        epochs instead of 300).
    lr_step: the learning rate changes with every step, or once an epoch.
    lsq_group: entries that count in LSQ's gradient scale: of the global batch, or of the share of
        one process.
    """

    initialization: Literal["full", "released"] = "full"
    qk_bias: Literal["fold", "drop"] = "fold"
    teacher_mode: Literal["eval", "train"] = "eval"
    teacher_head: Literal["mean", "cls"] = "mean"
    cga_targets: Literal["all", "linear", "released"] = "all"
    code_range: Literal["theoretical", "observed"] = "theoretical"
    swin_scale_axis: Literal["token", "column"] = "token"
    relative_bias_decay: Flag = False
    dead_biases: Flag = False
    cooldown: Flag = False
    lr_step: Literal["step", "epoch"] = "step"
    lsq_group: Literal["global", "per_process"] = "global"

    @property
    def name(self) -> str:
        """described or released when all switches are as in that bundle, else mixed."""
        for name, bundle in BUNDLES.items():
            if self == bundle:
                return name
        return "mixed"


_RELEASED: dict[str, Any] = {
    "initialization": "released",
    "qk_bias": "drop",
    "teacher_mode": "train",
    "teacher_head": "cls",
    "cga_targets": "released",
    "code_range": "observed",
    "swin_scale_axis": "column",
    "relative_bias_decay": True,
    "dead_biases": True,
    "cooldown": True,
    "lr_step": "epoch",
    "lsq_group": "per_process",
}
BUNDLES = {
    "described": FidelitySettings(),
    "released": FidelitySettings(**_RELEASED),
}
