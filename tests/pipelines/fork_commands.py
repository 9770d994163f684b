"""Helper of the tests: run commands of the suite in forks of a process that has imported torch.

That import takes seconds, and most commands that are tested here fail right after it. Each line
on standard input is a request: the arguments after `python -m`, the folder, files for standard
output and error, additions to the environment, and a limit on the size of files. The answer is
the exit status. The command itself runs as `python -m` runs it, in its own process.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import traceback

import dvc.utils.hydra  # noqa: F401
import hydra  # noqa: F401
import sklearn.model_selection  # noqa: F401
import torch  # noqa: F401

from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.settings import StudySettings  # noqa: F401


def run(request: dict) -> int:
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    if request["limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    sys.argv = request["argv"]
    try:
        runpy.run_module(request["argv"][0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    import_torchvision()
    import timm  # noqa: F401

    sys.path.insert(0, "")
    for line in sys.stdin:
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            status = run(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
