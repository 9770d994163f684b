"""A stage that takes no time: `python work.py OUT [INPUT ...]` writes its name and its inputs.

$TOY_LOG gets a line for every run. params.yaml says which stage fails, and which takes how many
seconds, or until a file is there: a grid all of its cells.
"""

import os
import sys
import time
from pathlib import Path

import yaml

out, *inputs = sys.argv[1:]
params = yaml.safe_load(Path("params.yaml").read_text())
stage = os.environ["DVC_STAGE"]
with open(os.environ["TOY_LOG"], "a") as log:
    log.write(f"{stage}\n")
print(f"{stage} works in {Path.cwd()}", flush=True)
slow = params["slow"].get(stage.partition("@")[0], 0)
if isinstance(slow, str):
    end = time.monotonic() + 600
    while not os.path.exists(slow) and time.monotonic() < end:
        time.sleep(0.05)
else:
    time.sleep(slow)
if params["fails"] == stage:
    raise ValueError(f"boom in {stage}")

texts = [params["text"]]
for name in inputs:
    path = Path(name)
    files = [path] if path.is_file() else sorted(path.rglob("*.txt"))
    texts += [file.read_text() for file in files]
target = Path(out) if Path(out).suffix else Path(out) / "a.txt"
target.parent.mkdir(parents=True, exist_ok=True)
target.write_text("\n".join([stage, *texts]) + "\n")
