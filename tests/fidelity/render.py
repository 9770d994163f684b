"""Render docs/fidelity.md from the tests of this folder: `python -m tests.fidelity.render`.

The tests are read, not run: a claim is the marker on a test, its proof the first line below.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

from ofq_core.settings import BUNDLES, FidelitySettings
from tests.fidelity.switches import SWITCHES

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "fidelity.md"

HEAD = """# Fidelity

What the suite claims to compute, the test that would fail if it did not, and what the released code
(nbasyl/OFQ at commit 7ed37d1) does at that place. The tests run on micro models in about a minute:

    pytest tests/fidelity

This page is rendered from them (`python -m tests.fidelity.render`), so it cannot say anything else.
That forward, loss and gradients agree with the released code number by number is tested in
`tests/quant`, `tests/nn` and `tests/models` against numbers measured from it.

"""
SWITCHES_HEAD = """
## Switches

Where the released code differs from what is described, there is a switch, `described` by default.
`-S fidelity=released` takes all of them as released; `-S fidelity.<switch>=<value>` takes one.

"""


class Test(NamedTuple):
    """A test function with its markers; claim and released are empty without `claim`."""

    file: str
    name: str
    proof: str
    claim: str
    released: str
    switches: tuple[str, ...]

    @property
    def where(self) -> str:
        """As pytest takes it."""
        return f"`{self.file}::{self.name}`"


def tests() -> list[Test]:
    """Every test of this folder, by file and place."""
    return [
        _read(path.name, node)
        for path in sorted(HERE.glob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def _read(file: str, node: ast.FunctionDef) -> Test:
    claim = released = ""
    switches = []
    for call in (item for item in node.decorator_list if isinstance(item, ast.Call)):
        if ast.unparse(call.func) == "pytest.mark.claim":
            (claim,) = map(ast.literal_eval, call.args)
            released = {k.arg: ast.literal_eval(k.value) for k in call.keywords}["released"]
        elif ast.unparse(call.func) == "pytest.mark.switch":
            switches += map(ast.literal_eval, call.args)
    proof = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
    return Test(file, node.name, proof, claim, released, tuple(switches))


def page() -> str:
    """The whole page."""
    found = tests()
    claims = [
        (test.claim, f"{test.proof} {test.where}", test.released) for test in found if test.claim
    ]
    described, released = (BUNDLES[name].model_dump() for name in ("described", "released"))
    switches = [
        (
            f"`{name}`",
            f"`{_yaml(described[name])}`",
            f"`{_yaml(released[name])}`",
            SWITCHES[name].changes,
            SWITCHES[name].why,
            " ".join(test.where for test in found if name in test.switches),
        )
        for name in FidelitySettings.model_fields
    ]
    return (
        HEAD
        + _table(("claim", "how it is tested", "the released code"), claims)
        + SWITCHES_HEAD
        + _table(
            ("switch", "described", "released", "what it changes", "why it exists", "test"),
            switches,
        )
    )


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(_cell(c) for c in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
    print(
        f"{PAGE.name}: {sum(bool(test.claim) for test in tests())} claims, {len(SWITCHES)} switches"
    )
