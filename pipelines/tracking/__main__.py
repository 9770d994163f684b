"""Entry point of `python -m pipelines.tracking`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
