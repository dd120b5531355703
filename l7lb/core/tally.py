"""What one worker counts between two looks of the others."""

from __future__ import annotations

from typing import Final

BUCKETS: Final = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0]  # seconds, of the histogram of answers


def bucket_of(elapsed: float) -> int:
    """The histogram's bucket for so many seconds; most answers are quick, so it begins with the shortest."""
    bucket = 0
    for most in BUCKETS:
        if elapsed <= most:
            break
        bucket += 1
    return bucket


class Tally:
    """What a worker counted since it last added it to the shared memory: plain numbers, since they change with every
    request and nobody looks more than ten times a second. A worker that is killed loses no more than that.
    """

    __slots__ = ("buckets", "elapsed", "received", "requests", "reused", "sent", "statuses", "sticky")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin at nothing."""
        self.requests = 0
        self.received = 0
        self.sent = 0
        self.elapsed = 0.0
        self.reused = 0
        self.sticky = 0
        self.statuses = [0, 0, 0, 0, 0, 0]
        self.buckets = [0] * (len(BUCKETS) + 1)

    def count(self, status: int, bucket: int, received: int, sent: int, elapsed: float) -> None:
        """One request, which took so many seconds."""
        self.requests += 1
        self.received += received
        self.sent += sent
        self.elapsed += elapsed
        self.statuses[status] += 1
        self.buckets[bucket] += 1
