"""What bounds a client that sends frames without asking for anything.

Frames are cut out of the bytes here, before the library looks at them, and each is weighed. Two scores stand for what
costs a server much and a client little; both fall with time, so that the limits are what may come within ten seconds:

- ``resets``: streams that the client opened and reset, or that were reset for its fault (rapid reset, CVE-2023-44487).
- ``control``: frames that carry no request and no body: SETTINGS, PING, PRIORITY, WINDOW_UPDATE, CONTINUATION
  (CVE-2024-27316), DATA without data, and types that nobody knows. Frames that do carry something pay for some: a large
  download needs many WINDOW_UPDATEs.

Above a limit the connection ends with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from typing import Final

SECONDS: Final = 10.0
HEADER: Final = 9  # bytes of a frame's header
PAID = 4.0  # control frames that one frame with contents pays for

DATA: Final = 0
HEADERS: Final = 1
RST_STREAM: Final = 3
GOAWAY: Final = 7
CONTINUATION: Final = 9

END_STREAM: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8


class Frame:
    """A complete frame: its parts that are looked at here, and its bytes."""

    __slots__ = ("data", "flags", "kind", "stream")

    def __init__(self, kind: int, flags: int, stream: int, data: bytes) -> None:
        self.kind = kind
        self.flags = flags
        self.stream = stream
        self.data = data

    @property
    def size(self) -> int:
        """How many bytes its contents have, by its header."""
        data = self.data
        return data[0] << 16 | data[1] << 8 | data[2]

    @property
    def content(self) -> int:
        """How many bytes a DATA frame brings, padding taken off; negative where the padding is longer than it."""
        size = len(self.data) - HEADER
        if self.flags & PADDED:
            size -= 1 + self.data[HEADER] if size else 1
        return size


class Cutter:
    """Cuts bytes into frames. ``held`` is what is left of an incomplete one."""

    __slots__ = ("_position", "held", "most")

    def __init__(self, most: int) -> None:
        self.most = most  # bytes of a frame's contents
        self.held = b""
        self._position = 0

    def add(self, data: bytes) -> None:
        """More bytes have come."""
        if self._position:
            self.held = self.held[self._position :]
            self._position = 0
        self.held = self.held + data if self.held else data

    def take(self, size: int) -> bytes | None:
        """The next ``size`` bytes, None while they are not all there."""
        end = self._position + size
        if len(self.held) < end:
            return None
        taken = self.held[self._position : end]
        self._position = end
        return taken

    def frame(self) -> Frame | None:
        """The next complete frame; one that is longer than allowed comes without its contents."""
        data, at = self.held, self._position
        if len(data) - at < HEADER:
            return None
        length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
        kind, flags = data[at + 3], data[at + 4]
        stream = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF
        taken = self.take(HEADER if length > self.most else HEADER + length)
        return None if taken is None else Frame(kind, flags, stream, taken)

    @property
    def kind(self) -> int:
        """The type of the frame that comes next, -1 where nothing of it is there; 255 while that can't be told."""
        left = len(self.held) - self._position
        return self.held[self._position + 3] if left > 3 else 255 if left else -1

    @property
    def complete(self) -> bool:
        """Whether another frame could be taken at once."""
        data, at = self.held, self._position
        if len(data) - at < HEADER:
            return False
        length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
        return length > self.most or len(data) - at - HEADER >= length


class Guard:
    """The two scores of one connection."""

    __slots__ = ("_control", "_control_limit", "_resets", "_resets_limit", "_since")

    def __init__(self, resets: int, control: int, now: float) -> None:
        self._resets_limit = float(resets)
        self._control_limit = float(control)
        self._resets = 0.0
        self._control = 0.0
        self._since = now

    def frame(self, frame: Frame, now: float) -> bool:
        """Weigh a frame; False when it is one too many."""
        kind = frame.kind
        if kind == HEADERS or (kind == DATA and frame.content > 0):
            self.paid()
            return True
        if kind == DATA and frame.flags & END_STREAM:
            return True
        if kind == RST_STREAM:
            return self.reset(now)
        self._fall(now)
        self._control += 1.0
        return self._control <= self._control_limit

    def reset(self, now: float) -> bool:
        """A stream was reset by the client or for its fault; False when it is one too many."""
        self._fall(now)
        self._resets += 1.0
        return self._resets <= self._resets_limit

    def paid(self) -> None:
        """A frame with contents went one way or the other."""
        if self._control:
            self._control = max(0.0, self._control - PAID)

    def _fall(self, now: float) -> None:
        past = (now - self._since) / SECONDS
        if past > 0.0:
            self._since = now
            self._resets = max(0.0, self._resets - past * self._resets_limit)
            self._control = max(0.0, self._control - past * self._control_limit)
