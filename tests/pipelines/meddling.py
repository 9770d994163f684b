"""Run a stage and edit a file as soon as it has read its settings:

python -m tests.pipelines.meddling FILE OLD NEW MODULE [ARGUMENT ...]
"""

import runpy
import sys
from pathlib import Path

from pipelines import params


def main(argv):
    file, old, new, module, *rest = argv
    load = params.load_study

    def load_and_edit(*arguments, **options):
        study = load(*arguments, **options)
        text = Path(file).read_text()
        assert old in text
        Path(file).write_text(text.replace(old, new))
        return study

    params.load_study = load_and_edit
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
