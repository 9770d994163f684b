"""The figures of a study, one file each: data of the runs in, SVG, PNG and CSV out."""

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tables.errors import TableError
from tables.figures.model import Figure, MissingData
from tables.figures.style import csv_bytes, image_bytes, style
from tables.files import read_yaml
from tables.published import PUBLISHED_FILE
from tables.runs import Study

__all__ = ["Figure", "render_figures"]

# As in the paper first, then what its claims rest on. Each is a module of that name.
FIGURES = (
    "toy_regression",
    "weight_histogram",
    "gradient_flips",
    "cga_scale_trajectory",
    "latent_trajectories",
    "accuracy_oscillation",
    "learning_curves",
    "flip_causes",
)


def render_figures(study: Study, out: Path) -> list[Figure]:
    """Write out/figures/<name>.{svg,png,csv}, the same bytes for the same data.

    A figure without data is skipped, and what an earlier rendering left of it is removed.
    TableError if a run's file is broken, or the folder cannot be written.
    """
    published = read_yaml(PUBLISHED_FILE).get("figures") or {}
    modules = [import_module(f"tables.figures.{name}") for name in FIGURES]
    return [_render(module, study, out / "figures", published) for module in modules]


def _render(module: ModuleType, study: Study, folder: Path, published: dict[str, str]) -> Figure:
    name, title = module.NAME, module.TITLE
    paths = {kind: folder / f"{name}.{kind}" for kind in ("svg", "png", "csv")}
    try:
        with style():
            drawing = module.draw(study)
            svg, png = image_bytes(drawing.canvas)
    except MissingData as missing:
        for path in paths.values():
            path.unlink(missing_ok=True)
        return Figure(name, title, "", None, None, None, skipped_reason=str(missing))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        contents = {"svg": svg, "png": png, "csv": csv_bytes(drawing)}
        for kind, content in contents.items():
            staged = folder / f".{name}.{kind}.part"
            staged.write_bytes(content)
            os.replace(staged, paths[kind])
    except OSError as error:
        raise TableError(f"{folder}: cannot be written ({error.strerror or error})") from error
    caption = drawing.caption
    if name in published:
        caption += f" The paper's figure: {published[name]}."
    return Figure(name, title, caption, paths["svg"], paths["png"], paths["csv"])
