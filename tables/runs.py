"""Read the result folders of a study: one folder per run, `<method>-w<b>a<b>-s<seed>`."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tables.errors import TableError
from tables.files import flatten, read_json, read_yaml
from tables.names import MethodName, method_name

_FOLDER = re.compile(r"(?P<method>[a-z0-9_]+)-w(?P<wbits>\d+)a(?P<abits>\d+)-s(?P<seed>\d+)")
OUTDATED = "outdated.yaml"
_COSTS = (
    "train_seconds",
    "images_per_second",
    "peak_memory_bytes",
    "model_bytes",
    "macs",
    "bit_operations",
    "qkr_extra_macs",
    "qkr_extra_weights",
)


@dataclass(frozen=True)
class Origin:
    """What env.json says about where a run comes from; None where it says nothing."""

    commit: str | None = None
    dirty: bool = False
    device: str | None = None
    torch: str | None = None
    manifest: str | None = None
    teacher: str | None = None


@dataclass(frozen=True)
class Run:
    """One finished run: accuracies in percent, shares as fractions, costs as their keys say.

    oscillation: every number of that section of metrics.json, nested ones by dotted keys.

    val_top1 is None where no training images were held out for selection.
    """

    folder: Path
    method: str
    wbits: int
    abits: int
    seed: int
    top1: float
    top5: float
    loss: float
    val_top1: float | None
    n_images: int
    n_correct: int
    oscillation_share: float | None
    oscillation: Mapping[str, float]
    costs: Mapping[str, float]
    settings: Mapping[str, Any]
    origin: Origin

    @property
    def bits(self) -> str:
        """The column a run belongs to, such as `w2a2`."""
        return f"w{self.wbits}a{self.abits}"

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.folder.name


@dataclass(frozen=True)
class Study:
    """The runs of a results folder.

    `unfinished` names run folders without metrics.json, `left_over` those that are not asked for.
    `outdated`: names of quantizers (`quant.weight`) that have changed since, and how; `current` are
    the runs without theirs.
    """

    folder: Path
    runs: tuple[Run, ...]
    unfinished: tuple[str, ...]
    left_over: tuple[str, ...] = ()
    outdated: Mapping[str, str] = field(default_factory=dict)

    def method(self, name: str) -> MethodName:
        """A method's name taken apart, with what this study says of it."""
        method = method_name(name)
        return replace(method, outdated=method.weight in self.outdated)

    @property
    def current(self) -> tuple[Run, ...]:
        """The runs of methods that are not outdated."""
        return tuple(run for run in self.runs if not self.method(run.method).outdated)


def read_study(results: Path, only: Collection[str] | None = None) -> Study:
    """Read the runs below `results`; TableError if there is none, or one is broken.

    `only` names the run folders that count; others, such as cells of an earlier grid, are left
    alone. By default all count. A committed reference whose methods have changed since says so in
    its outdated.yaml.
    """
    if not results.is_dir():
        raise TableError(f"{results}: no such results folder; run the grid first (dvc repro)")
    runs: list[Run] = []
    unfinished: list[str] = []
    left_over: list[str] = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        if folder.name.startswith("."):
            # Left by a process that was killed while it replaced a run.
            continue
        named = _FOLDER.fullmatch(folder.name) is not None
        if named and only is not None and folder.name not in only:
            left_over.append(folder.name)
            continue
        if (folder / "metrics.json").exists():
            if not named:
                raise TableError(
                    f"{folder}: holds a metrics.json but is not named <method>-w<b>a<b>-s<seed>"
                )
            runs.append(read_run(folder))
        elif named:
            unfinished.append(folder.name)
    if not runs:
        raise TableError(
            f"{results}: holds no finished run (a folder with metrics.json); run the grid first"
        )
    _refuse_duplicates(runs)
    for run in runs:
        _refuse_misnamed(run)
    runs.sort(key=lambda run: (run.method, run.wbits, run.abits, run.seed))
    outdated = results / OUTDATED
    reasons = read_yaml(outdated) if outdated.is_file() else {}
    return Study(results, tuple(runs), tuple(unfinished), tuple(left_over), reasons)


def read_run(folder: Path) -> Run:
    """Read one run folder; TableError names the file and the key that is missing or wrong."""
    path = folder / "metrics.json"
    metrics = read_json(path)
    for key in ("oscillation", "cost", "epoch_selected", "settings_sha256"):
        if key not in metrics:
            raise TableError(f"{path}: key '{key}' is missing")
    settings_path = folder / "settings.yaml"
    settings = flatten(read_yaml(settings_path))
    method = settings.get("method")
    if not isinstance(method, str):
        raise TableError(f"{settings_path}: key 'method' is missing or not a name")
    share = None
    if metrics["oscillation"] is not None:
        share = _number(_section(metrics, "oscillation", path), "share", path, "oscillation.", 0, 1)
    costs = _section(metrics, "cost", path)
    run = Run(
        folder=folder,
        method=method,
        wbits=_whole(settings, "quant.wbits", settings_path),
        abits=_whole(settings, "quant.abits", settings_path),
        seed=_whole(settings, "seed", settings_path),
        top1=_number(metrics, "top1", path, "", 0, 100),
        top5=_number(metrics, "top5", path, "", 0, 100),
        loss=_number(metrics, "loss", path),
        val_top1=_number_or_null(metrics, "val_top1", path, 0, 100),
        n_images=_whole(metrics, "n_images", path),
        n_correct=_whole(metrics, "n_correct", path),
        oscillation_share=share,
        oscillation=_numbers(metrics["oscillation"]),
        costs={
            key: _number(costs, key, path, "cost.") for key in _COSTS if costs.get(key) is not None
        },
        settings=settings,
        origin=_origin(folder / "env.json"),
    )
    if run.n_images < 1 or not math.isclose(
        run.top1, 100 * run.n_correct / run.n_images, abs_tol=0.01
    ):
        raise TableError(
            f"{path}: top1 {run.top1} is not 100 * n_correct / n_images "
            f"({run.n_correct}/{run.n_images})"
        )
    return run


def _refuse_duplicates(runs: list[Run]) -> None:
    seen: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        first = seen.setdefault((run.method, run.bits, run.seed), run)
        if first is not run:
            raise TableError(
                f"{first.folder} and {run.folder}: both are "
                f"method {run.method}, {run.bits}, seed {run.seed}; keep one"
            )


def _refuse_misnamed(run: Run) -> None:
    expected = f"{run.method}-{run.bits}-s{run.seed}"
    if run.name != expected:
        raise TableError(
            f"{run.folder}: its settings.yaml belongs to {expected}; rename or remove the folder"
        )


def _numbers(section: Any) -> dict[str, float]:
    """All numbers; what was not measured is null there and absent here."""
    flat = flatten(section) if isinstance(section, dict) else {}
    return {
        key: float(value)
        for key, value in flat.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _section(metrics: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    section = metrics[key]
    if not isinstance(section, dict):
        raise TableError(f"{path}: key '{key}' is not a mapping")
    return section


def _number(
    source: Mapping[str, Any],
    key: str,
    path: Path,
    prefix: str = "",
    low: float = -math.inf,
    high: float = math.inf,
) -> float:
    if key not in source:
        raise TableError(f"{path}: key '{prefix}{key}' is missing")
    value = source[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TableError(f"{path}: key '{prefix}{key}' is {value!r}, expected a finite number")
    if not low <= value <= high:
        raise TableError(f"{path}: key '{prefix}{key}' is {value}, expected {low} to {high}")
    return float(value)


def _number_or_null(
    source: Mapping[str, Any], key: str, path: Path, low: float, high: float
) -> float | None:
    if key in source and source[key] is None:
        return None
    return _number(source, key, path, "", low, high)


def _whole(source: Mapping[str, Any], key: str, path: Path) -> int:
    if key not in source:
        raise TableError(f"{path}: key '{key}' is missing")
    value = source[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TableError(f"{path}: key '{key}' is {value!r}, expected a whole number")
    return value


def _origin(path: Path) -> Origin:
    if not path.exists():
        return Origin()
    env = flatten(read_json(path))

    def text(key: str) -> str | None:
        return None if env.get(key) is None else str(env[key])

    return Origin(
        commit=text("git.commit"),
        dirty=bool(env.get("git.dirty")),
        device=text("device"),
        torch=text("versions.torch"),
        manifest=text("manifest_sha256"),
        teacher=text("teacher_sha256"),
    )
