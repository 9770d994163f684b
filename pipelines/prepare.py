"""Stage `prepare`: the data, split and hashed, in data/<name>."""

from __future__ import annotations

import sys
from pathlib import Path

from ofq_core.settings import StudySettings
from pipelines.alone import alone
from pipelines.params import load_study
from pipelines.stage import stage_main


def data_folder(study: StudySettings) -> Path:
    """Where the prepare stage puts its arrays and manifest."""
    return Path("data") / study.data.name


def main(argv: list[str]) -> None:
    """Prepare the data that params.yaml names."""
    study = load_study()
    # Imported here, so that a wrong setting is reported before torch is loaded.
    from ofq_core.data import prepare_data
    from ofq_core.data.rows import shown

    folder = data_folder(study)
    with alone(folder):
        manifest = prepare_data(study.data, folder)
    counts = ", ".join(f"{name} {part['images']}" for name, part in manifest["splits"].items())
    print(f"prepare: {manifest['source']} -> {folder}: {counts} images")
    unreadable = manifest.get("unreadable", [])
    if unreadable:
        print(
            f"prepare: {len(unreadable)} files cannot be read or are no images, such as "
            f"{shown(unreadable[0])}"
        )


if __name__ == "__main__":
    stage_main(main, sys.argv[1:], __doc__)
