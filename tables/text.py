"""How numbers read, in every format. The minus sign is U+2212; LaTeX swaps it for its own."""

from tables.model import Cell
from tables.seeds import Difference

MISSING = "—"


def fixed(value: float) -> str:
    """Two decimals, as the paper prints accuracies."""
    return f"{value:.2f}"


def signed(value: float) -> str:
    """Two decimals with a sign; what rounds to zero has none."""
    text = f"{value:+.2f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def spread(value: float | None) -> str:
    """A spread with its sign in front, or nothing where there is none."""
    return "" if value is None else f" ± {value:.2f}"


def top1(cell: Cell) -> str:
    """Mean and spread in percent, such as `94.12 ± 0.41`."""
    return MISSING if cell.mean is None else fixed(cell.mean) + spread(cell.spread)


def top1_and_n(cell: Cell) -> str:
    """As `top1`, with the number of seeds: `94.12 ± 0.41 (5)`."""
    return MISSING if cell.mean is None else f"{top1(cell)} ({cell.n})"


def difference(cell: Cell) -> str:
    """Paired difference in points; the number of pairs only where it is not the cell's n."""
    if cell.is_baseline and cell.mean is not None:
        return "baseline"
    return paired(cell.difference, cell.n)


def difference_of_block(cell: Cell) -> str:
    """Paired difference in points to the same method at the study's own fidelity."""
    return paired(cell.difference_of_block, cell.n)


def paired(difference: Difference | None, n: int) -> str:
    """Paired difference in points; the number of pairs only where it is not the n seeds."""
    if difference is None:
        return MISSING
    pairs = "" if difference.pairs == n else f" ({difference.pairs} of {n} seeds)"
    return signed(difference.mean) + spread(difference.spread) + pairs


def oscillation(cell: Cell) -> str:
    """Share of oscillating weights in percent, without the sign."""
    return MISSING if cell.oscillation_share is None else fixed(100 * cell.oscillation_share)


def trust_mark(cell: Cell) -> str:
    """One letter for the trust level of the published value; empty where nothing was found."""
    return cell.published.trust[0] if cell.published.trust else ""


def published(cell: Cell) -> str:
    """The published value as printed, with the difference to it where that means something."""
    text = cell.published.text
    if cell.difference_to_published is not None:
        text += f" ({signed(cell.difference_to_published)})"
    return text
