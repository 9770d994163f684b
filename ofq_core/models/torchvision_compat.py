"""Make `import torchvision` work where its compiled operators do not load.

PyPI's torchvision wheel for Linux is built for CUDA. With a CPU build of torch its operator
library does not load, and `import torchvision` (hence `import timm`) stops at
"operator torchvision::nms does not exist". Transforms and models need no such operator, so it is
enough to declare the two schemas for which torchvision registers shape functions.
"""

from __future__ import annotations

import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []


def import_torchvision() -> bool:
    """Import torchvision, declaring its operators first if their library does not load.

    Returns:
        True when the schemas had to be declared, False when torchvision came up by itself.
    """
    if "torchvision" in sys.modules:
        return bool(_declared)
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for schema in _SCHEMAS:
            library.define(schema)  # type: ignore[no-untyped-call]
        _declared.append(library)
        import torchvision  # noqa: F401
    return bool(_declared)
