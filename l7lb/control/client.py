"""A client of the admin API for the commands: standard library only, so that they start fast."""

from __future__ import annotations

import errno
import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from l7lb.core.errors import L7lbError
from l7lb.core.unixpath import short_path

ANSWER = 256 * 1024 * 1024  # bytes
SECONDS = 60.0  # without a byte; a reload of a large configuration takes its time


class AdminError(L7lbError):
    """The node can't be asked, or refused; ``details`` are further lines, such as a configuration's problems."""

    def __init__(self, message: str, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.details = details


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("l7lb", timeout=seconds)
        self._path = path
        self._seconds = seconds

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._seconds)
        with short_path(self._path) as path:
            self.sock.connect(path)


class AdminClient:
    """One node's admin socket. Every call is a connection of its own and raises AdminError."""

    def __init__(self, path: Path, seconds: float = SECONDS) -> None:
        self.path = path
        self._seconds = seconds

    def get(self, what: str, **query: object) -> Any:
        """``status``, ``servers`` or ``sessions``."""
        wanted = {key: value for key, value in query.items() if value is not None}
        return self._ask("GET", f"/v1/{what}" + (f"?{urlencode(wanted, doseq=True)}" if wanted else ""), None)

    def post(self, verb: str, **fields: object) -> Any:
        """A verb with its fields."""
        return self._ask("POST", f"/v1/{verb}", fields)

    def _ask(self, method: str, target: str, fields: Mapping[str, object] | None) -> Any:
        connection = _Connection(self.path, self._seconds)
        body = json.dumps(fields).encode() if fields is not None else None
        try:
            connection.request(method, target, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            data = response.read(ANSWER)
        except TimeoutError:
            raise AdminError(f"l7lb did not answer at {self.path} within {self._seconds:g} s") from None
        except OSError as error:
            raise AdminError(self._unreachable(error)) from None
        except http.client.HTTPException as error:
            raise AdminError(f"what answers at {self.path} is not l7lb: {type(error).__name__}") from None
        finally:
            connection.close()
        try:
            answer = json.loads(data)
        except ValueError:
            raise AdminError(f"what answers at {self.path} is not l7lb: no JSON") from None
        if response.status != 200:
            answer = answer if isinstance(answer, dict) else {}
            problems = tuple(str(problem) for problem in answer.get("problems", ()))
            raise AdminError(str(answer.get("error", f"status {response.status}")), problems)
        return answer

    def _unreachable(self, error: OSError) -> str:
        if isinstance(error, ConnectionResetError | BrokenPipeError):
            return f"what listens at {self.path} closed the connection without an answer: is l7lb just ending?"
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            what = "there is no socket" if error.errno != errno.ECONNREFUSED else "nobody listens"
            return f"{what} at {self.path}: is l7lb running? `l7lb serve --config FILE` starts it"
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"no permission to use {self.path}: run this as the user that l7lb runs as, or as root"
        return f"{self.path}: {error.strerror or error}"
