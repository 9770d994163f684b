"""The published numbers: looked up, never computed and never filled in from memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables.errors import TableError
from tables.files import read_yaml

TRUST = ("primary", "derived", "secondary", "user")
OFQ = ("statsq", "qkr", "cga")
PUBLISHED_FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """What is published for one cell, top-1 in percent; `value` is None where no number was found.

    `text` is what to show: the number with the digits it was published with, or, where only the
    gain is known, the gain: `LSQ +6.3`.
    """

    text: str = "not found"
    value: float | None = None
    gain_over_lsq: float | None = None
    trust: str | None = None
    note: str = ""


class PublishedNumbers:
    """`published.yaml`, with one question for each kind of table row."""

    def __init__(self, path: Path = PUBLISHED_FILE) -> None:
        self._path = path
        self._document = read_yaml(path, verbatim=True)

    def full_precision(self, model: str) -> Published:
        """The full-precision accuracy that the OFQ authors print for `model` themselves."""
        entry = self._section("full_precision").get(model)
        if not isinstance(entry, dict) or "printed_by_ofq" not in entry:
            return Published()
        return self._printed(str(entry["printed_by_ofq"]), "primary", str(entry.get("note", "")))

    def ablation(self, model: str, components: tuple[str, ...], bits: str) -> Published:
        """The ablation entry of just these components at `bits` (such as `w2a2`), or empty.

        Models without an ablation have the main comparison, whose OFQ has all components.
        """
        entries = self._document.get(f"ablation_{model}")
        if not isinstance(entries, list):
            return self.main("ofq", model, bits) if components == OFQ else Published()
        for entry in entries:
            if tuple(entry.get("components", ())) == components:
                return self._from_entry(entry, bits)
        return Published()

    def main(self, paper: str, model: str, bits: str) -> Published:
        """What `paper` reports for `model` at `bits` in the main comparison, or empty."""
        note = ""
        for entry in self.entries("main"):
            if entry.get("paper") != paper:
                continue
            # "same" is what the entry of that paper before it says.
            note = note if entry.get("note") == "same" else str(entry.get("note", ""))
            if entry.get("model") == model:
                return self._from_entry(entry | {"note": note}, bits)
        return Published()

    def entries(self, key: str) -> list[dict[str, Any]]:
        """The list of entries `key`, every value as it was typed; empty if there is none.

        TableError for an entry without a known trust level, where it has one.
        """
        entries = self._document.get(key) or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise TableError(f"{self._path}: '{key}' is not a list of entries")
        for entry in entries:
            if "trust" in entry:
                self._known(str(entry["trust"]))
        return entries

    def section(self, key: str) -> dict[str, Any]:
        """The mapping `key`, every value as it was typed; TableError if there is none."""
        return self._section(key)

    def _from_entry(self, entry: dict[str, Any], bits: str) -> Published:
        trust, note = str(entry.get("trust", "")), str(entry.get("note", ""))
        if bits in entry:
            return self._printed(str(entry[bits]), trust, note)
        gains = entry.get("gain_over_lsq")
        if isinstance(gains, dict) and bits in gains:
            gain = self._float(str(gains[bits]))
            return Published(
                f"LSQ {'+' if gain >= 0 else ''}{gains[bits]}", None, gain, self._known(trust), note
            )
        return Published(note=note)

    def _printed(self, text: str, trust: str, note: str) -> Published:
        return Published(text, self._float(text), None, self._known(trust), note)

    def _known(self, trust: str) -> str:
        if trust not in TRUST:
            raise TableError(
                f"{self._path}: trust '{trust}' is unknown, allowed are {', '.join(TRUST)}"
            )
        return trust

    def _float(self, text: str) -> float:
        try:
            return float(text)
        except ValueError as error:
            raise TableError(f"{self._path}: '{text}' is not a number") from error

    def _section(self, key: str) -> dict[str, Any]:
        section = self._document.get(key)
        if not isinstance(section, dict):
            raise TableError(f"{self._path}: section '{key}' is missing")
        return section
