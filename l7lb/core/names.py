"""Distinguished names of certificates as text."""

from __future__ import annotations

import re

SPECIAL = re.compile(r'([,+"\\<>;=]|^[# ]| $)')


def escape_name(value: str) -> str:
    """A value of a distinguished name (RFC 4514 section 2.4), so that it can't pass for more than one.

    In visible ASCII: what is special with a backslash, all else as the hexadecimal bytes of UTF-8.
    """
    return "".join(
        c if " " <= c <= "~" else "".join(f"\\{byte:02X}" for byte in c.encode("utf-8", "surrogatepass"))
        for c in SPECIAL.sub(r"\\\1", value)
    )
