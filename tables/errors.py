"""The one error of this room."""


class TableError(Exception):
    """A table that cannot be rendered honestly; the message is one line, shown as it is."""
