"""Time limits in SLURM's forms."""

from __future__ import annotations

import re

TIME_FORMS = "minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"
_TIME = re.compile(
    r"(?P<d>\d+)-(?P<dh>[01]?\d|2[0-3])(:(?P<dm>[0-5]?\d)(:(?P<ds>[0-5]?\d))?)?"
    r"|(?P<h>\d+):(?P<hm>[0-5]?\d):(?P<hs>[0-5]?\d)"
    r"|(?P<m>\d+)(:(?P<ms>[0-5]?\d))?",
    re.ASCII,
)
_UNIT = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def seconds_of(time: str) -> int:
    """Seconds of a time limit in one of SLURM's forms.

    Raises:
        ValueError: it has none of them, or is zero, which SLURM takes for no limit.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        raise ValueError(f"expected {TIME_FORMS}")
    parts = {name: int(text) for name, text in match.groupdict().items() if text is not None}
    seconds = sum(number * _UNIT[name[-1]] for name, number in parts.items())
    if seconds == 0:
        raise ValueError("expected more than no time")
    return seconds
