"""What architecture and bit widths a file in the released layout was made with.

Sizes are read from the shapes of its tensors. What shapes do not tell, the heads of plain DeiT and
the bits, comes from what the file says of itself, or from the caller; nothing is guessed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ofq_core.checkpoints.released_files import ReleasedFile
from ofq_core.errors import CheckpointError
from ofq_core.explain import validated
from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.settings import ModelSettings, QuantSettings

# Under what names files hold the bits; the first are the released code's.
_BITS = {"wbits": ("wq_bitw", "wbits"), "abits": ("aq_bitw", "abits")}
_PATCHES = {"blocks.": "patch_embed.proj", "features.": "features.0.0"}


@dataclass(frozen=True)
class ReleasedFacts:
    """How to build the model of a file. tokens: of a block, in Swin of a window."""

    model: ModelSettings
    quant: QuantSettings
    tokens: int
    distilled: bool


def read_facts(
    file: ReleasedFile,
    wbits: int | None = None,
    abits: int | None = None,
    num_heads: int | None = None,
) -> ReleasedFacts:
    """Read sizes from shapes, bits and (plain DeiT) heads from what the file says or the caller.

    Raises:
        CheckpointError: no DeiT and no Swin, sizes that contradict each other, or something that
            shapes do not tell is not said, with the argument to give.
        SettingsError: bits outside 2 to 8.
    """
    swin = any(key.startswith("features.") for key in file.state)
    if not swin and "pos_embed" not in file.state:
        known = ", ".join(list(file.state)[:3])
        raise CheckpointError(
            f"{file.path}: neither DeiT (no pos_embed) nor Swin (no features.*) in the released "
            f"layout; it holds {known}, ..."
        )
    shapes = _Shapes(file, swin)
    qkr = any(key.endswith("attn.q.weight") for key in file.state)
    raw = {
        "weight": "statsq",
        "wbits": _bits(file, "wbits", wbits),
        "abits": _bits(file, "abits", abits),
        "qkr": qkr,
        "cga": False,
    }
    quant = validated(QuantSettings, raw, str(file.path), prefix="quant")
    read = _swin if swin else _deit
    sizes, tokens = read(shapes, file, qkr, num_heads)
    model = validated(ModelSettings, sizes, str(file.path), prefix="model")
    return ReleasedFacts(model, quant, tokens, "head_dist.weight" in file.state)


class _Shapes:
    """Shapes of a file's tensors, with a message where one is missing or has another rank."""

    def __init__(self, file: ReleasedFile, swin: bool) -> None:
        self.file, self.swin = file, swin
        self.patches = _PATCHES["features." if swin else "blocks."]

    def __call__(self, key: str, rank: int) -> tuple[int, ...]:
        tensor = self.file.state.get(key)
        if tensor is None:
            raise CheckpointError(f"{self.file.path}: {key} is missing")
        if tensor.ndim != rank:
            raise CheckpointError(
                f"{self.file.path}: {key} has shape {tuple(tensor.shape)}, expected {rank} axes"
            )
        return tuple(tensor.shape)

    def common(self) -> dict[str, Any]:
        """Sizes that both families have."""
        width, channels, patch, _ = self(f"{self.patches}.weight", 4)
        key = f"{self.patches}.move_b4.bias"
        (pixels,) = self(key, 1)
        size = math.isqrt(pixels)
        if size * size != pixels or size % patch:
            raise CheckpointError(
                f"{self.file.path}: {key} has {pixels} entries: expected one per pixel of a square "
                f"image whose side is a multiple of the patch size {patch}"
            )
        return {
            "num_classes": self("head.weight", 2)[0],
            "img_size": size,
            "patch_size": patch,
            "in_chans": channels,
            "embed_dim": width,
        }

    def blocks(self, pattern: str) -> list[str]:
        """Prefixes of the blocks, in order, each number once and without a gap."""
        found = {int(m[1]) for key in self.file.state if (m := re.match(pattern, key))}
        if found != set(range(len(found))) or not found:
            raise CheckpointError(
                f"{self.file.path}: blocks {sorted(found)} under {pattern}: expected 0, 1, 2, ... "
                "without a gap"
            )
        return [str(number) for number in sorted(found)]


def _deit(
    shapes: _Shapes, file: ReleasedFile, qkr: bool, num_heads: int | None
) -> tuple[dict[str, Any], int]:
    sizes = shapes.common()
    width, depth = sizes["embed_dim"], len(shapes.blocks(r"blocks\.(\d+)\."))
    distilled = "dist_token" in file.state
    tokens = shapes("pos_embed", 3)[1]
    patches = (sizes["img_size"] // sizes["patch_size"]) ** 2
    if tokens != patches + 1 + distilled:
        raise CheckpointError(
            f"{file.path}: pos_embed has {tokens} tokens, but {sizes['img_size']} x "
            f"{sizes['img_size']} pixels (length of patch_embed.proj.move_b4.bias) in patches of "
            f"{sizes['patch_size']} give {patches}, plus {1 + distilled}"
        )
    if qkr:
        (length,) = shapes("blocks.0.attn.move_qkx_b4.bias", 1)
        heads = length // width
        _agree(file, "num_heads", num_heads, heads)
    else:
        heads = num_heads or _said_heads(file, width)
    name = {192: "tiny", 384: "small"}.get(width, "base")
    sizes |= {
        "name": f"deit_{name}_{'distilled_' if distilled else ''}patch16_224",
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": shapes("blocks.0.mlp.fc1.weight", 2)[0] / width,
    }
    return sizes, tokens


def _said_heads(file: ReleasedFile, width: int) -> int:
    """Heads of plain DeiT: the qkv matrix has the same shape whatever their number."""
    said = file.facts.get("num_heads")
    if isinstance(said, int) and said > 0:
        return said
    for name in (file.facts.get("model"), file.arch):
        known = _timm_heads(name, width)
        if known is not None:
            return known
    raise CheckpointError(
        f"{file.path}: the number of heads is not in the tensors of attention without QKR, and "
        f"the file names no model of timm that is {width} wide: give it, --num-heads N "
        "(DeiT-T 3, DeiT-S 6, DeiT-B 12)"
    )


def _timm_heads(name: Any, width: int) -> int | None:
    """Heads of timm's model of that name, if it is as wide as the file."""
    if not isinstance(name, str):
        return None
    import_torchvision()
    import timm
    import torch

    if not timm.is_model(name) or "deit" not in name:
        return None
    with torch.device("meta"):
        model: Any = timm.create_model(name, pretrained=False)
    if model.embed_dim != width:
        return None
    return int(model.blocks[0].attn.num_heads)


def _swin(
    shapes: _Shapes, file: ReleasedFile, qkr: bool, num_heads: int | None
) -> tuple[dict[str, Any], int]:
    sizes = shapes.common()
    if num_heads is not None:
        raise CheckpointError(
            f"{file.path}: num_heads = {num_heads} was given, but Swin's heads per stage are in "
            "its tensors"
        )
    stages = [
        f"features.{n}" for n in range(1, 64, 2) if f"features.{n}.0.norm1.weight" in file.state
    ]
    depths, heads, windows = [], [], []
    for stage in stages:
        depths.append(len(shapes.blocks(rf"{re.escape(stage)}\.(\d+)\.")))
        entries, count = shapes(f"{stage}.0.attn.relative_position_bias_table", 2)
        heads.append(count)
        windows.append((math.isqrt(entries) + 1) // 2)
    if not stages or len(set(windows)) > 1:
        raise CheckpointError(
            f"{file.path}: windows of {windows} in the stages: expected one size for all"
        )
    # Each stage halves the map, rounded up.
    smallest = -(-sizes["img_size"] // sizes["patch_size"] // 2 ** (len(stages) - 1))
    if smallest < windows[0]:
        raise CheckpointError(
            f"{file.path}: the last stage has a map of {smallest} x {smallest} in windows of "
            f"{windows[0]}: the released code pads such a map, timm makes the windows smaller. "
            "Files whose windows are larger than a map cannot be read"
        )
    width = sizes["embed_dim"]
    size = "tiny" if sum(depths) <= 12 else "small"
    sizes |= {
        "name": f"swin_{size}_patch4_window7_224",
        "depths": depths,
        "heads_per_stage": heads,
        "window_size": windows[0],
        "mlp_ratio": shapes("features.1.0.mlp.fc1.weight", 2)[0] / width,
    }
    return sizes, windows[0] ** 2


def _bits(file: ReleasedFile, key: str, given: int | None) -> int:
    said = next((file.facts[k] for k in _BITS[key] if file.facts.get(k) is not None), None)
    if said is None and given is None:
        raise CheckpointError(
            f"{file.path}: the file does not say its {key} (looked for {' and '.join(_BITS[key])} "
            f"among its arguments), and they are not in its tensors: give them, --{key} 2|3|4"
        )
    if said is not None:
        _agree(file, key, given, said)
    return given if said is None else said  # type: ignore[return-value]


def _agree(file: ReleasedFile, key: str, given: int | None, said: Any) -> None:
    if given is not None and given != said:
        raise CheckpointError(
            f"{file.path}: {key} = {given} was given, but the file holds {key} = {said}: leave it "
            "out, or give the right file"
        )
