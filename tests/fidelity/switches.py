"""What each fidelity switch changes and why it exists, for docs/fidelity.md."""

from __future__ import annotations

from typing import NamedTuple


class Text(NamedTuple):
    """Two sentences, or nearly so, in plain English."""

    changes: str
    why: str


SWITCHES = {
    "initialization": Text(
        "Which pretrained tensors the student starts from. Released: all but the attention "
        "projections, without QKR also without q, k and v, in Swin without the relative position "
        "bias; these are random, and Swin's reductions get a random bias.",
        "The released wrappers build a fresh attention and wrap its layers instead of the "
        "pretrained ones, so published numbers come from a partly random start, and the ablation "
        "without QKR from a far worse one than with it.",
    ),
    "qk_bias": Text(
        "QKR's query bias: one vector per head on the key side, or nothing.",
        "The released QKR has q and k without biases. Leaving out the key bias is exact, leaving "
        "out the query bias is not.",
    ),
    "teacher_mode": Text(
        "Whether dropout and stochastic depth act in the teacher. Where it has neither, as in the "
        "presets, its target is the same.",
        "The released code never puts the teacher into evaluation mode.",
    ),
    "teacher_head": Text(
        "The soft target of a distilled teacher: the mean of its heads or its class head. No "
        "change for a teacher with one head.",
        "In training mode a distilled model returns both heads, and the released loss takes the "
        "first one.",
    ),
    "cga_targets": Text(
        "Which matrices CGA holds: all; linear, without the query-key products; released, the "
        "same, and in Swin without QKR nothing.",
        "The released quantizer for the product has no effect, and names of Swin without QKR do "
        "not match the released filter.",
    ),
    "code_range": Text(
        "Whether a threshold counts for CGA when no weight of the matrix has a code beyond it.",
        "The released mask goes from the smallest to the largest code that occurs. In a real layer "
        "every code occurs, and there is no difference.",
    ),
    "swin_scale_axis": Text(
        "Activation scales of Swin's MLP and reduction: one per token or one per image column.",
        "The released quantizer takes axis -2, which is a token in (batch, tokens, channels), but "
        "a column in Swin's (batch, height, width, channels).",
    ),
    "relative_bias_decay": Text(
        "Weight decay of Swin's relative position bias.",
        "The released code asks the model for parameters without decay, and its Swin has no such "
        "list. It matters at 2 bits only, where the recipe decays.",
    ),
    "dead_biases": Text(
        "A second bias of k, or of the query-key product, in every block: on it the output does "
        "not depend.",
        "The released layout has them, and so have its checkpoints. Nothing else depends on it but "
        "the number of parameters.",
    ),
    "cooldown": Text(
        "`recipe.cooldown_epochs` at the minimum learning rate between cosine and last phase.",
        "timm's scheduler adds 10 epochs of cool-down, so 300 epochs are 310 in the released code.",
    ),
    "lr_step": Text(
        "Learning rate per step or per epoch.",
        "The released scheduler is called once an epoch, so that the first one runs at 1e-6.",
    ),
    "lsq_group": Text(
        "Entries that count in LSQ's gradient scale 1 / sqrt(qmax M): those of the whole batch, or "
        "those of one process.",
        "The released code counts the batch of one GPU, so its gradients depend on the number of "
        "GPUs. AdamW nearly cancels the factor.",
    ),
}
