"""Run a stage that is killed at a place: `python -m tests.pipelines.dying PLACE MODULE [ARGUMENT]`.

The places are those where a finished run is put in place; see test_publishing.py.
"""

import os
import runpy
import shutil
import signal
import sys
from pathlib import Path


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_while_removing(which):
    """One file of the folder is gone, the others are still there."""
    remove = shutil.rmtree

    def rmtree(path, *arguments, **options):
        files = sorted(file for file in Path(path).rglob("*") if file.is_file())
        if which in str(path) and files:
            files[0].unlink()
            die()
        remove(path, *arguments, **options)

    shutil.rmtree = rmtree


def killed_at_move(wanted, after=False):
    """Before or after `wanted(source, target)` is moved."""
    replace = Path.replace

    def moved(source, target):
        if wanted(Path(source), Path(target)) and not after:
            die()
        replace(source, target)
        if wanted(Path(source), Path(target)) and after:
            die()

    Path.replace = moved


def killed_while_writing(name):
    """The file is complete under its temporary name."""
    replace = os.replace

    def replace_or_die(source, target, **options):
        if Path(target).name == name:
            die()
        replace(source, target, **options)

    os.replace = replace_or_die


PLACES = {
    "writing the student": lambda: killed_while_writing("student.pt"),
    "writing its environment": lambda: killed_while_writing("env.json"),
    "removing what was there": lambda: killed_while_removing("results/smoke"),
    "before the folder is moved": lambda: killed_at_move(lambda s, t: s.name == "result"),
    "after the folder is moved": lambda: killed_at_move(lambda s, t: s.name == "result", True),
    "between former and new": lambda: killed_at_move(lambda s, t: s.name.endswith(".new")),
    "between two drafts": lambda: killed_at_move(lambda s, t: s.name == "oscillation.json"),
    "between two files": lambda: killed_at_move(lambda s, t: t.name == "oscillation.json"),
    "after the last file": lambda: killed_at_move(lambda s, t: t.name == "training.json", True),
    "before the teacher is renamed": lambda: killed_at_move(lambda s, t: t.name == "teacher.pt"),
    "after the teacher is renamed": lambda: killed_at_move(
        lambda s, t: t.name == "teacher.pt", True
    ),
    "tidying up": lambda: killed_while_removing(".partial/"),
}


def main(argv):
    place, module, *rest = argv
    PLACES[place]()
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
