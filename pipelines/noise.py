"""Stage `noise`: perturb trained students near the thresholds and anywhere (Table 1)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofq_core.settings import RunSettings, StudySettings
from pipelines.params import load_study
from pipelines.prepare import data_folder
from pipelines.stage import stage_main
from pipelines.unchanged import check_unchanged

if TYPE_CHECKING:
    from ofq_core.distributed import World

TRIALS = 10


def noise_file(study: StudySettings) -> Path:
    """Where the result lies; not among the runs, which the stage depends on as a whole."""
    return Path("results/noise") / f"{study.study}.json"


def subjects(study: StudySettings) -> list[RunSettings]:
    """The main methods that are trained, at the lowest bit width, with the first seed."""
    bits, seed = min(study.grid.bits), study.grid.seeds[0]
    cells = [study.cell(method, bits, seed) for method in study.grid.methods]
    return [cell for cell in cells if cell.quant.trains]


def main(argv: list[str]) -> None:
    """Measure every subject and write one file."""
    study = load_study()
    from ofq_core.distributed import join_world
    from ofq_core.files import write_json

    with join_world() as world:
        rows = [_row(study, settings, world) for settings in subjects(study)]
    if world.main:
        check_unchanged()
        write_json(noise_file(study), {"trials": TRIALS, "rows": rows})
        print(f"noise: {len(rows)} students, {TRIALS} trials each way")


def _row(study: StudySettings, settings: RunSettings, world: World) -> dict[str, Any]:
    """One student. Every process draws the same flips and evaluates its share of the images."""
    import torch

    from ofq_core.data import check_class_names, open_data, stored_class_names
    from ofq_core.evaluation import evaluate
    from ofq_core.noise import inject_noise
    from ofq_core.training import make_deterministic
    from pipelines.training import load_student

    make_deterministic(settings.seed, settings.recipe.threads or torch.get_num_threads())
    data = open_data(settings.data, data_folder(study))
    folder = Path("results") / settings.study / settings.name
    names = stored_class_names(folder / "student.pt")
    check_class_names(str(folder), names, data.class_names, str(data_folder(study)))
    model = load_student(folder, settings, True, world.device)
    batch, precision = settings.recipe.batch_size, settings.recipe.precision

    def top1() -> float:
        share, device = world.share, world.device
        name = f"{folder / 'student.pt'}, with flipped codes or without"
        return evaluate(model, data, "test", batch, share, device, precision, name).top1

    clean = top1()
    boundary_range = settings.quant.boundary_range
    found = inject_noise(model, top1, boundary_range, TRIALS, settings.seed)
    return {
        "method": settings.method,
        "bits": settings.quant.wbits,
        "seed": settings.seed,
        "boundary_range": boundary_range,
        "clean_top1": clean,
        "weights": found.weights,
        "inside": found.inside,
        "perturbed": found.perturbed,
        "boundary": {"top1": found.boundary},
        "random": {"top1": found.random},
    }


if __name__ == "__main__":
    stage_main(main, sys.argv[1:], __doc__)
