"""The node's name."""

from __future__ import annotations

import re
import socket


def node_name(given: object) -> str:
    """The name in the file, or the host's, in the characters of a name."""
    if isinstance(given, str):
        return given
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64] or "localhost"
