"""How long a test waits for what must come.

Long enough for a machine that is ten times slower, since whatever comes ends the wait at once: a
test never asserts how soon. That nothing comes is shown by an event that would have brought it,
not by waiting.
"""

PATIENCE = 600.0  # seconds
