"""When single checks add up to a verdict: a state machine with two counters.

::

    unknown --good--> healthy            the first check decides alone: a node that starts must know soon
    unknown --bad---> unhealthy
    healthy --bad, fall times in a row--> unhealthy
    unhealthy --good, rise times in a row--> healthy

A good check while healthy forgets the bad ones before it, and the other way round.
"""

from __future__ import annotations


class RiseFall:
    """The streak of one server's checks; ``healthy`` is what was known before them, if anything was."""

    __slots__ = ("agreeing", "fall", "healthy", "rise", "streak")

    def __init__(self, rise: int, fall: int, healthy: bool | None = None) -> None:
        self.rise = rise
        self.fall = fall
        self.healthy = healthy
        self.agreeing = max(rise, fall) if healthy is not None else 0  # checks that bear the verdict out
        self.streak = 0  # checks in a row that contradict the verdict

    def feed(self, good: bool) -> bool:
        """One check has ended; returns whether the verdict has changed."""
        if self.healthy is None:
            self.healthy = good
            self.agreeing = 1
            return True
        if good == self.healthy:
            self.streak = 0
            self.agreeing += 1
            return False
        self.streak += 1
        if self.streak < (self.fall if self.healthy else self.rise):
            return False
        self.healthy = good
        self.agreeing = self.streak
        self.streak = 0
        return True

    def words(self, reason: str) -> str:
        """The last check's reason with how far it counts, as an operator reads it."""
        if self.healthy:
            return f"{reason} ({self.streak} of {self.fall} checks)" if self.streak else reason
        if self.streak:
            return f"{reason} ({self.streak} of {self.rise} good checks)"
        if self.agreeing == 1 < self.fall:
            return f"{reason} (first check)"
        return f"{reason} ({min(self.agreeing, self.fall)} of {self.fall} checks)"
