"""The whole file."""

from __future__ import annotations

import string
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from l7lb.config.addresses import parse_bind
from l7lb.config.directories import Directory
from l7lb.config.document import Mapping
from l7lb.config.fields import Bind, FilePath, Name, Text
from l7lb.config.listeners import Listener
from l7lb.config.mailboxes import AddressRules, Mailboxes
from l7lb.config.pools import Pool
from l7lb.config.protocols import LISTENERS
from l7lb.config.section import Reading, Section
from l7lb.config.units import Duration, DurationOrZero
from l7lb.config.wording import choice, describe, listing, quoted, reported, wrong
from l7lb.core.record import AccessRecord

WORKERS = 64  # the most that a node has
FIELDS = AccessRecord.__struct_fields__


def _log_format(value: str) -> str:
    """``json``, or a format string whose fields are those of an access record."""
    if value == "json":
        return value
    try:
        pieces = list(string.Formatter().parse(value))
    except ValueError as error:
        raise wrong(f"{quoted(value)} is not a format: {error}; a brace that is text is written twice") from None
    if all(name is None for _, name, _, _ in pieces):
        raise wrong(f"{quoted(value)} has no field: write json, or fields in braces, such as {{client}} {{status}}")
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if spec or conversion:
            raise wrong(f"{quoted(name)}: a field is its name alone, such as {{{name}}}")
        if name not in FIELDS:
            raise wrong(choice("the field", name, FIELDS))
    if not value.isprintable() and not value.replace("\t", "").isprintable():
        raise wrong(f"{quoted(value)} has a control character; a record is one line")
    return value


def _workers(value: Any) -> Any:
    if value == "auto":
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong(f"must be auto or a number of workers, not {describe(value)}")
    if not 1 <= value <= WORKERS:
        raise wrong(f"{value} is not between 1 and {WORKERS}")
    return value


def _metrics(value: str) -> str:
    if parse_bind(value).path:
        raise wrong("metrics are read over TCP: write an address and a port, such as 127.0.0.1:9400")
    return value


WORKERS_SCHEMA = {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": WORKERS}]}
Workers = Annotated[Any, PlainValidator(_workers), WithJsonSchema(WORKERS_SCHEMA)]


class Admin(Section):
    """How the running node is asked and told."""

    socket: FilePath = Field(
        default="run/admin.sock", description="The unix socket of `l7lb status`, `drain`, `reload` ..."
    )
    metrics: Annotated[Bind, AfterValidator(_metrics)] | None = Field(
        default=None, description="Where Prometheus reads /metrics, and others /livez and /readyz; without it, nowhere."
    )


class Log(Section):
    """What the node says of itself, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error."
    )
    format: Literal["text", "json"] = Field(default="text", description="text or json.")


class Shutdown(Section):
    """How the node ends."""

    drain: DurationOrZero = Field(
        default=30.0, description="How long established connections get to finish; idle ones end at once."
    )
    without_supervisor: Duration = Field(
        default=3600.0, description="Workers without a supervisor drain and end after so long."
    )


class AccessLog(Section):
    """One line for each request."""

    path: FilePath = Field(description='The file, or "-" for standard output.')
    format: Annotated[str, AfterValidator(_log_format)] = Field(
        default="json",
        description='json, or a format string such as "{time} {client} {method} {path} {status} {total_ms}".',
    )


class Tables(Section):
    """The sticky tables."""

    size: int = Field(
        default=1_000_000,
        ge=1000,
        le=10_000_000,
        description="Entries of one table in each worker; the oldest make room.",
    )


def _listener(data: Any, info: ValidationInfo) -> Listener:
    """A listener by its protocol's own model."""
    if not isinstance(data, dict):
        raise wrong(f"must be a mapping, not {describe(data)}; its keys: {listing(Listener.keys())}")
    protocol = data.get("protocol", next(iter(LISTENERS)))  # that it is missing is said by the model
    model = LISTENERS.get(protocol) if isinstance(protocol, str) else None
    if model is not None:
        return model.model_validate(data, context=info.context)
    if not isinstance(protocol, str):
        message = f"must be the name of a protocol, not {describe(protocol)}; known: {listing(LISTENERS)}"
    else:
        message = choice("the protocol", protocol, LISTENERS)
    if isinstance(info.context, Reading) and isinstance(data, Mapping):
        info.context.problem((*data.path, "protocol"), message)
        raise reported()
    raise wrong(message)


class _ByProtocol:
    """The type of a listener of any known protocol."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(_listener)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        models = [handler(model.__pydantic_core_schema__) for model in LISTENERS.values()]
        return models[0] if len(models) == 1 else {"anyOf": models}


class Configuration(Section):
    """An l7lb node."""

    node: Name | None = Field(default=None, description="The node's name; default: the hostname.")
    workers: Workers = Field(default="auto", description="Worker processes: a number, or auto for one a core.")
    state: FilePath | None = Field(
        default=None,
        description="The directory for what outlives a restart: sticky tables, weights and drains set at run time.",
    )
    user: Text | None = Field(
        default=None, description="The user that all but one small process run as, where l7lb is started as root."
    )
    group: Text | None = Field(default=None, description="Their group; default: the user's own.")
    shutdown: Shutdown = Field(default=Shutdown(), description="How the node ends.")
    admin: Admin = Field(default=Admin(), description="How the running node is asked and told.")
    log: Log = Field(default=Log(), description="What the node says of itself.")
    access_log: AccessLog | None = Field(default=None, description="One line for each request; without it, none.")
    tables: Tables = Field(default=Tables(), description="The tables of persistence keys that need one.")
    directories: dict[Name, Directory] = Field(
        default={}, description="Where it is written which mailbox an address means, by the directory's name."
    )
    mailboxes: Mailboxes = Field(default=Mailboxes(), description="How mailboxes change servers.")
    addresses: AddressRules = Field(
        default=AddressRules(), description="How addresses and logins of mail become canonical."
    )
    listeners: Annotated[list[Annotated[Listener, _ByProtocol]], Field(min_length=1)] = Field(
        description="Where clients come in."
    )
    pools: dict[Name, Pool] = Field(
        default={}, description="Servers that can stand in for one another, by the pool's name."
    )

    def protocols(self, pool: str) -> tuple[str, ...]:
        """The protocols of the listeners whose rules lead to a pool, in the file's order."""
        return tuple(dict.fromkeys(one.kind for one in self.listeners if pool in one.pools()))
