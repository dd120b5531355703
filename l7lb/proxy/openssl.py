"""What OpenSSL can do and Python's ssl module does not offer, through ctypes on the very library that ssl uses.

The functions are called with the ``SSL_CTX`` and ``SSL`` pointers that CPython's objects hold. Where they lie in these
objects is not promised by anybody, so it is proved before the first use, without following a pointer that might not be
one: an ssl object holds its context's address next to its ``SSL`` pointer, and OpenSSL says which ``SSL_CTX`` that
belongs to. Where the proof fails, or the library's functions can't be found (Python may be linked with OpenSSL
statically), :data:`PROBLEM` says why, and the node does without: session tickets are each worker's own, OCSP responses
are not stapled.
"""

from __future__ import annotations

import ctypes
import platform
import ssl
import sys
from collections.abc import Callable
from typing import Any, Final

SET_TICKET_KEYS: Final = 59  # SSL_CTRL_SET_TLSEXT_TICKET_KEYS
GET_TICKET_KEYS: Final = 58
CLEAR_MODE: Final = 78  # SSL_CTRL_CLEAR_MODE
AUTO_RETRY: Final = 4  # SSL_MODE_AUTO_RETRY
SET_SESSION_CACHE: Final = 44  # SSL_CTRL_SET_SESS_CACHE_MODE
SET_GROUPS: Final = 92  # SSL_CTRL_SET_GROUPS_LIST
SET_STATUS_CALLBACK: Final = 63  # SSL_CTRL_SET_TLSEXT_STATUS_REQ_CB
SET_STATUS_RESPONSE: Final = 71  # SSL_CTRL_SET_TLSEXT_STATUS_REQ_OCSP_RESP
TICKET_KEY_BYTES: Final = 80  # 16 that name it, 32 for its HMAC, 32 for AES-256
STATUS_OK: Final = 0  # SSL_TLSEXT_ERR_OK
STATUS_NONE: Final = 3  # SSL_TLSEXT_ERR_NOACK

PROBLEM: str = "it was not looked for yet"
HEAD: Final = object.__basicsize__  # bytes before an object's own fields
StatusCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

_library: Any = None
_looked = False


def available() -> bool:
    """Whether the functions below work; else PROBLEM says why not."""
    global _looked, _library, PROBLEM
    if not _looked:
        _looked = True
        try:
            _library = _load()
            PROBLEM = ""
        except (OSError, AttributeError, ValueError, ssl.SSLError) as error:
            PROBLEM = str(error)
    return _library is not None


def set_ticket_key(context: ssl.SSLContext, key: bytes) -> bool:
    """Have session tickets made with this key of TICKET_KEY_BYTES; returns whether they are."""
    if len(key) != TICKET_KEY_BYTES:
        raise ValueError(f"a ticket key has {TICKET_KEY_BYTES} bytes, not {len(key)}")
    if not available():
        return False
    pointer = _context_pointer(context)
    if _library.SSL_CTX_ctrl(pointer, SET_TICKET_KEYS, len(key), key) != 1:
        return False
    back = ctypes.create_string_buffer(len(key))
    return _library.SSL_CTX_ctrl(pointer, GET_TICKET_KEYS, len(key), back) == 1 and back.raw == key


def forget_sessions(context: ssl.SSLContext) -> None:
    """Keep no sessions in this process: clients hold them in their tickets, and memory stays bounded."""
    if available():
        _library.SSL_CTX_ctrl(_context_pointer(context), SET_SESSION_CACHE, 0, None)


def set_groups(context: ssl.SSLContext, groups: str) -> None:
    """Agree on keys in these groups only, in OpenSSL's words and with colons."""
    if available():
        _library.SSL_CTX_ctrl(_context_pointer(context), SET_GROUPS, 0, groups.encode())
        _library.ERR_clear_error()


def name_client_cas(context: ssl.SSLContext, file: str) -> None:
    """Tell clients whose certificates are wanted, so that browsers offer only those that fit."""
    if available():
        names = _library.SSL_load_client_CA_file(file.encode())
        if names:
            _library.SSL_CTX_set_client_CA_list(_context_pointer(context), names)  # takes the list over
        _library.ERR_clear_error()


def certificate_pointer(context: ssl.SSLContext) -> int:
    """The certificate that was loaded last into a context, as an address; 0 where it can't be told."""
    return int(_library.SSL_CTX_get0_certificate(_context_pointer(context)) or 0) if available() else 0


def staple(context: ssl.SSLContext, responses: dict[int, bytes]) -> object:
    """Give clients that ask for it the OCSP response of the certificate they get, by its :func:`certificate_pointer`.

    Returns what must live as long as the context does.
    """

    def answer(connection: int, argument: object) -> int:  # noqa: ARG001
        response = responses.get(_library.SSL_get_certificate(connection) or 0)
        if not response:
            return STATUS_NONE
        # OpenSSL frees it together with the connection.
        copy = _library.CRYPTO_malloc(len(response), b"l7lb", 0)
        if not copy:
            return STATUS_NONE
        ctypes.memmove(copy, response, len(response))
        _library.SSL_ctrl(connection, SET_STATUS_RESPONSE, len(response), copy)
        return STATUS_OK

    callback = StatusCallback(answer)
    _library.SSL_CTX_callback_ctrl(_context_pointer(context), SET_STATUS_CALLBACK, callback)
    return callback


def read_by_record(connection: Any) -> None:
    """Have a read end behind each record, also one that holds no data.

    Otherwise, as the ssl module sets it, a read goes on until there is data. Who sends KeyUpdate (RFC 8446 section
    4.6.3) faster than it is answered would keep the whole process in one read, for as long as he likes.
    """
    if available():
        _library.SSL_ctrl(_connection_pointer(connection), CLEAR_MODE, AUTO_RETRY, None)


def closer(connection: Any) -> Callable[[], int] | None:
    """What sends close_notify on an ssl object's connection and reads nothing; it returns -1 where it must wait.

    None where it can't be had; ``shutdown()`` of the ssl module would also read, and lose what was on its way.
    """
    if not available():
        return None
    pointer = _connection_pointer(connection)
    shutdown, clear = _library.SSL_shutdown, _library.ERR_clear_error

    def close() -> int:
        done: int = shutdown(pointer)
        if done < 0:
            clear()  # or the next call of the ssl module would take this error for its own
        return done

    return close


# --- inside -------------------------------------------------------------------------------------------------------


def _word(place: int) -> int:
    return ctypes.c_size_t.from_address(place).value


def _context_pointer(context: ssl.SSLContext) -> int:
    return _word(id(context) + HEAD)


def _connection_pointer(connection: Any) -> int:
    """Behind the head: the socket's reference, the SSL pointer, the context."""
    return _word(id(connection) + HEAD + ctypes.sizeof(ctypes.c_void_p))


def _load() -> Any:
    if platform.python_implementation() != "CPython":
        raise ValueError("this is not CPython")
    if hasattr(sys, "gettotalrefcount"):
        raise ValueError("this is a debug build of Python")
    import _ssl

    file = getattr(_ssl, "__file__", None)
    library = ctypes.CDLL(file)  # with all libraries that it needs; None: the program itself, where ssl is built in
    pointer, size = ctypes.c_void_p, ctypes.c_long
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "SSL_CTX_ctrl": (ctypes.c_long, [pointer, ctypes.c_int, size, pointer]),
        "SSL_ctrl": (ctypes.c_long, [pointer, ctypes.c_int, size, pointer]),
        "SSL_CTX_callback_ctrl": (ctypes.c_long, [pointer, ctypes.c_int, StatusCallback]),
        "SSL_get_SSL_CTX": (pointer, [pointer]),
        "SSL_get_certificate": (pointer, [pointer]),
        "SSL_CTX_get0_certificate": (pointer, [pointer]),
        "SSL_shutdown": (ctypes.c_int, [pointer]),
        "SSL_load_client_CA_file": (pointer, [ctypes.c_char_p]),
        "SSL_CTX_set_client_CA_list": (None, [pointer, pointer]),
        "CRYPTO_malloc": (pointer, [ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int]),
        "ERR_clear_error": (None, []),
    }
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise ValueError(f"the library that Python's ssl uses does not show {name}") from None
        function.restype, function.argtypes = result, arguments
    _prove(library)
    return library


def _prove(library: Any) -> None:
    """Raises ValueError unless the pointers lie where they are looked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    inner = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())._sslobj  # type: ignore[attr-defined]
    step = ctypes.sizeof(ctypes.c_void_p)
    if type(inner).__basicsize__ < HEAD + 3 * step or _word(id(inner) + HEAD + 2 * step) != id(context):
        raise ValueError("the ssl module's objects are of another shape than was expected")
    if library.SSL_get_SSL_CTX(_connection_pointer(inner)) != _context_pointer(context):
        raise ValueError("the ssl module's contexts are of another shape than was expected")
