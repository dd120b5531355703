"""The protocols that a listener can speak: each one's section of the configuration is a model in a file of its own."""

from __future__ import annotations

from l7lb.config.listeners import Listener
from l7lb.config.protocols.http import HttpListener
from l7lb.config.protocols.mail import MAIL_LISTENERS
from l7lb.config.protocols.tcp import TcpListener
from l7lb.config.protocols.tls import TlsPassthroughListener

MODELS: tuple[type[Listener], ...] = (HttpListener, *MAIL_LISTENERS, TlsPassthroughListener, TcpListener)
LISTENERS: dict[str, type[Listener]] = {model.kind: model for model in MODELS}
