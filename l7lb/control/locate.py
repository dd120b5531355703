"""Where the admin socket of a configuration is, without loading the configuration.

A command that talks to a running node needs nothing else of the file: it starts in a third of the time, and works while
the file is being edited and has errors. Whatever is odd here is left to the loader, whose errors say what is wrong.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

DEFAULT = "run/admin.sock"
BYTES = 16 * 1024 * 1024


def admin_socket(file: Path) -> Path:
    """The socket's path. Raises ConfigurationError where the file doesn't say."""
    found = _glance(file)
    if found is None:
        from l7lb.config import load

        return load(file).settings.admin_socket
    return file.absolute().parent / found


def _glance(file: Path) -> str | None:
    """What the file says in ``admin.socket``, the default without it; None where that is not plain."""
    try:
        with file.open("rb") as stream:
            text = stream.read(BYTES).decode()
        data = _parsed(file.suffix.lower(), text)
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    if not isinstance(data, dict):
        return None
    admin = data.get("admin", {})
    socket = admin.get("socket", DEFAULT) if isinstance(admin, dict) else None
    return socket if isinstance(socket, str) and socket else None


def _parsed(ending: str, text: str) -> Any:
    if ending == ".json":
        return json.loads(text)
    if ending == ".toml":
        return tomllib.loads(text)
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ValueError(str(error)) from None
