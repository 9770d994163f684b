"""Read a checkpoint in the layout of the released OFQ code.

    python -m ofq_core.checkpoints.released PATH [--wbits 2 --abits 2] [--json OUT]
    python -m ofq_core.checkpoints.released PATH --data FOLDER     and evaluate it

prints what became of every tensor; see docs/checkpoints.md. In Python: `load_released(path).model`.
"""

from __future__ import annotations

import argparse
from typing import Any

from ofq_core.checkpoints.released_files import ReleasedFile, read_released, save_released
from ofq_core.checkpoints.released_fill import export_released, fill_released
from ofq_core.checkpoints.released_load import ReleasedModel, ReleasedReport, load_released

__all__ = [
    "ReleasedFile",
    "ReleasedModel",
    "ReleasedReport",
    "export_released",
    "fill_released",
    "load_released",
    "main",
    "read_released",
    "save_released",
]


def main(argv: list[str]) -> None:
    """Print the report, and with data evaluate the model as `python -m ofq_core.evaluate` does."""
    from ofq_core import evaluate
    from ofq_core.checkpoints.subject import released_subject

    parser = argparse.ArgumentParser(
        prog="python -m ofq_core.checkpoints.released",
        description="Read a checkpoint in the layout of the released OFQ code.",
    )
    evaluate.add_arguments(parser)
    parser.add_argument("--map", action="store_true", help="print every key and where it went")
    arguments = parser.parse_args(argv)
    loaded = load_released(arguments.path, arguments.wbits, arguments.abits, arguments.num_heads)
    describe(loaded, arguments.map)
    content: dict[str, Any] = {"report": loaded.report.as_dict()}
    if arguments.data is not None or arguments.images is not None:
        content |= evaluate.run(released_subject(loaded), arguments)
    evaluate.write_report(arguments.json, content)


def describe(loaded: ReleasedModel, every_key: bool) -> None:
    """Print sizes, bits, what the file says of itself, and the report."""
    facts, file, report = loaded.facts, loaded.file, loaded.report
    sizes = facts.model.model_dump(exclude_none=True, exclude={"name"})
    print(f"{file.path}: {facts.model.name}, {facts.tokens} tokens, {sizes}")
    print(
        f"{'QKR' if facts.quant.qkr else 'plain attention'}, "
        f"{facts.quant.wbits}-bit weights, {facts.quant.abits}-bit activations"
    )
    said = {"arch": file.arch, "epoch": file.epoch, "metric": file.metric}
    told = [f"{key} {value}" for key, value in said.items() if value is not None]
    if told:
        print(f"the file says: {', '.join(told)}")
    print(report.summary())
    if every_key:
        for key, names in report.mapped.items():
            print(f"  {key} {report.shapes[key]} -> {', '.join(names)}")
        for key, why in report.constants.items():
            print(f"  {key} = {why}")


if __name__ == "__main__":
    from ofq_core.evaluate import command

    command(main)
