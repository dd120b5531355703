"""A message on its way behind DATA: where it ends, and that nobody could see another end in it.

The end is CRLF.CRLF and nothing else. Where somebody takes a lone LF (or CR) for a line's end as well, ``LF . LF`` or
``LF . CRLF`` would end the message there and have the rest run as commands ("SMTP smuggling", CVE-2023-51764). So the
first lone CR or LF ends the message's way: the server has not seen an end by then, and is cut off.
"""

from __future__ import annotations

import re
from typing import Final

_END: Final = b"\r\n.\r\n"
_LONE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)")

MORE: Final = 0
END: Final = 1
LONE: Final = 2


class DataScanner:
    """Cuts what a client sends behind DATA. The dots that begin lines stay as they are: both sides stuff them.

    A CR at the end of what came is held back until the byte behind it is known, so that what is passed on does not
    depend on how the bytes were cut.
    """

    __slots__ = ("_tail", "lone", "state")

    def __init__(self) -> None:
        self._tail = b"\r\n"  # the last bytes before what comes next, as many as may begin an end
        self.state = MORE
        self.lone = b""  # CR or LF, whichever it was

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """What of ``data`` and what was held back is passed on, and how much of ``data`` was used.

        ``state`` is MORE while the message goes on, END with its last byte, LONE behind a lone CR or LF.
        """
        tail = self._tail
        window = tail + data
        held = 1 if len(tail) and tail.endswith(b"\r") else 0
        begin = len(tail) - held  # what stands before was passed on
        found = window.find(_END)
        end = found + len(_END) if found >= 0 else len(window)
        at = self._lone_in(window, begin, end, found >= 0)
        if at >= 0:
            self.state = LONE
            self.lone = window[at : at + 1]
            return window[begin:at], len(data)
        if found >= 0:
            self.state = END
            return window[begin:end], end - len(tail)
        stop = end - 1 if window.endswith(b"\r") else end
        self._tail = window[max(0, end - 4) :]
        return window[begin:stop], len(data)

    @staticmethod
    def _lone_in(window: bytes, begin: int, end: int, whole: bool) -> int:
        """Where the first lone CR or LF is, -1 for none. A CR in the last place may still get its LF."""
        pairs = window.count(b"\r\n", begin, end)
        last = 0 if whole or window[end - 1 : end] != b"\r" else 1
        # A LF at the very beginning belongs to a CR that was passed on only where that is there: it never is, since a
        # CR is held back until its LF has come.
        if window.count(b"\n", begin, end) == pairs == window.count(b"\r", begin, end) - last:
            return -1
        lone = _LONE.search(window, begin, end - last)
        return lone.start() if lone is not None else -1
