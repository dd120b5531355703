"""Directories as the data path sees them: a question about an address, and the answer that comes back later.

Who asks knows nothing of LDAP, files or HTTP: a process of its own does (see :mod:`l7lb.routing.directory`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from l7lb.core.contracts import Entry
from l7lb.core.snapshot import Server

FOUND: Final = "found"
MISSING: Final = "missing"
REFUSED: Final = "refused"
FAILED: Final = "failed"


class Question:
    """Where does this mailbox live?

    ``address`` is canonical (:func:`l7lb.core.mailbox.canonical`), ``user`` its short name
    (:func:`l7lb.core.mailbox.short_name`), ``login`` what the client typed. The rest is for programs that judge
    logins: ``password`` (empty where there is none), ``mechanism`` of SASL in lower case, the ``protocol``, the
    ``client``'s address, the number of the ``attempt`` in this connection, and whether the client speaks ``tls``.
    """

    __slots__ = ("address", "attempt", "client", "login", "mechanism", "password", "protocol", "tls", "user")

    def __init__(
        self, address: bytes, user: bytes = b"", login: bytes = b"", protocol: str = "", client: str = ""
    ) -> None:
        self.address = address
        self.user = user or address
        self.login = login or address
        self.protocol = protocol
        self.client = client
        self.password = b""
        self.mechanism = ""
        self.attempt = 1
        self.tls = False


class Answer:
    """What the directories say.

    ``status`` is ``found`` (then there is an ``entry``), ``missing`` (no directory has the address: permanent),
    ``refused`` (a program that judges logins won't have this one: as a server's refusal of the credentials, whatever
    the policy for what is missing), or ``failed`` (temporary: nobody could answer, or there are several entries).

    ``directory`` names the one that answered, of several that miss it the last; ``missing``, ``unknown_server`` and
    ``server_down`` are its policies: ``pool`` or ``refuse``. ``wait`` is in how many seconds the client should hear of
    a refusal. ``why`` is for the log, not for clients.
    """

    __slots__ = ("directory", "entry", "missing", "server_down", "status", "unknown_server", "wait", "why")

    def __init__(self, status: str, entry: Entry | None = None, why: str = "") -> None:
        self.status = status
        self.entry = entry
        self.why = why
        self.directory = ""
        self.missing = "refuse"
        self.unknown_server = "refuse"
        self.server_down = "refuse"
        self.wait = 0.0


class Directories(Protocol):
    """Asks the node's directories."""

    def ask(self, names: tuple[str, ...], question: Question, done: Callable[[Answer], None]) -> Callable[[], None]:
        """Ask these directories in this order, the next one where one misses the address.

        ``done`` is called once, later and never inside this call, within a limited time whatever happens. The function
        that is returned takes the question back: ``done`` is not called any more.
        """
        ...


def named_server(name: str, servers: Sequence[Server], protocol: str) -> Server | None:
    """The server that a directory means: by its name, or its host with or without a port; None for no or several.

    A port only decides between servers that share a host, since it may be that of another protocol.
    """
    for server in servers:
        if name == server.name:
            return server
    wanted = name.lower().rstrip(".")
    host, colon, port = wanted.rpartition(":")
    if not colon or not port.isdigit() or host.endswith(":"):
        host, port = wanted, ""
    host = host.strip("[]")
    found = [one for one in servers if host in (one.origin.lower(), one.host.lower(), one.address.host.lower())]
    if len(found) > 1 and port:
        number = int(port)
        found = [server for server in found if server.address_for(protocol).port == number] or [
            server for server in found if number in server.ports.values()
        ]
    return found[0] if len(found) == 1 else None
