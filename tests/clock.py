"""A clock for code that waits: its sleeps take no time, and what is planned happens in them."""

import time


class Clock:
    """Takes the place of `time` in a module.

    now: seconds slept so far, which is what `monotonic` tells.
    """

    def __init__(self):
        self.now, self.planned = 0.0, []

    def later(self, seconds, action):
        """Have this done in the sleep that reaches so many seconds from now."""
        self.planned.append((self.now + seconds, action))

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        due = [action for at, action in self.planned if at <= self.now]
        self.planned = [(at, action) for at, action in self.planned if at > self.now]
        for action in due:
            action()

    def __getattr__(self, name):
        return getattr(time, name)
