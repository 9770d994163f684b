"""Entry point of `python -m pipelines.tracking`."""

import os
import sys

from ofq_core.output import any_output

from .cli import main

if __name__ == "__main__":
    with any_output():
        status = main()
    # Taking mlflow apart costs a second, for which a stage would wait; all is written by now.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
