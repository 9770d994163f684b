"""Errors that a user can mend. Their message names the key or file, the value and what is right."""


class OFQError(Exception):
    """Base of every error that is reported as one message, without a traceback."""


class SettingsError(OFQError):
    """A setting is unknown, misspelt, out of range or contradicts another one."""


class DataError(OFQError):
    """Data is missing, damaged or does not fit the settings."""


class ModelError(OFQError):
    """A model cannot be built, converted or filled with the given weights."""


class CheckpointError(OFQError):
    """A checkpoint cannot be read, written or does not belong to this run."""


class TrainingError(OFQError):
    """Training cannot go on, such as after a loss that is not finite."""


class TrainingStopped(OFQError):  # noqa: N818 - nothing went wrong
    """Training ended before its time because somebody asked; its checkpoint is there to go on."""


class LeftAloneError(OFQError):
    """Another process that computes with this one has ended; why, it has said itself."""


def some(reasons: list[str], most: int = 3) -> str:
    """The first reasons on one line, and how many more there are."""
    more = f"; and {len(reasons) - most} more" if len(reasons) > most else ""
    return "; ".join(reasons[:most]) + more


def shortened(value: object, most: int = 80) -> str:
    """A value as a message shows it: as Python writes it, its middle left out if it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # Nested too deeply, or an integer of more digits than Python prints.
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= most else f"{text[: most - 20]}...{text[-15:]}"
