"""The commands. Each imports what it needs when it runs: `l7lb --version` and completion must not wait for a web stack.

Exit codes: 0 done, 1 refused or failed, with one plain line on standard error, 2 a command that can't be understood.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from l7lb import __version__
from l7lb.core.errors import ConfigurationError, L7lbError

if TYPE_CHECKING:
    from l7lb.config import Loaded
    from l7lb.control.client import AdminClient

PLACES = (Path("l7lb.yaml"), Path("/etc/l7lb/l7lb.yaml"))
Command = TypeVar("Command", bound=Callable[..., Any])


class Group(click.Group):
    """The commands with the program's own errors as one plain line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; no error of the program or the system becomes a traceback."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            lines = [str(problem) for problem in error.problems]
        except L7lbError as error:
            lines = [f"l7lb: {error}", *getattr(error, "details", ())]
        except BrokenPipeError:
            # The reader of our output has gone, as `head` does; nothing more can be said to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            lines = [f"l7lb: {where}{error.strerror or error}"]
        except KeyboardInterrupt:
            ctx.exit(130)
        for line in lines:
            click.echo(line, err=True)
        return ctx.exit(1)


def config_option(command: Command) -> Command:
    """--config."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        envvar="L7LB_CONFIG",
        metavar="FILE",
        help="The configuration. [default: ./l7lb.yaml, else /etc/l7lb/l7lb.yaml]",
    )(command)


def admin_options(command: Command) -> Command:
    """--admin and --config: which running node is meant."""
    socket = click.option(
        "--admin",
        type=click.Path(path_type=Path),
        envvar="L7LB_ADMIN",
        metavar="SOCKET",
        help="The running node's admin socket. [default: the configuration's]",
    )
    return config_option(socket(command))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def configuration(path: Path | None) -> Path:
    """The configuration that is meant: the given one, or the first that is there."""
    if path is not None:
        return path
    for place in PLACES:
        if place.exists():
            return place
    raise L7lbError(f"there is no {PLACES[0]} here and no {PLACES[1]}: say --config FILE")


def loaded(path: Path | None) -> Loaded:
    """The configuration, loaded."""
    from l7lb.config import load

    return load(configuration(path))


def client(admin: Path | None, config: Path | None, seconds: float = 60.0) -> AdminClient:
    """A client of the node that is meant."""
    from l7lb.control.client import AdminClient
    from l7lb.control.locate import admin_socket

    if admin is None:
        try:
            admin = admin_socket(configuration(config))
        except ConfigurationError as error:
            raise L7lbError(
                f"{configuration(config)} has errors (`l7lb check` shows them), and names no admin socket: "
                f"say --admin SOCKET. The first: {error.problems[0]}"
            ) from None
        except L7lbError as error:
            raise L7lbError(f"{error}, or --admin SOCKET") from None
    return AdminClient(admin, seconds)


def show(value: Any, as_json: bool, draw: str) -> None:
    """Print a value as JSON, or as the table of that name."""
    if as_json:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    from l7lb.control import tables

    tables.show(getattr(tables, draw)(value))


def server_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """For the shell's completion: the running node's servers. Whatever goes wrong, there are just none."""
    try:
        rows = client(ctx.params.get("admin"), ctx.params.get("config"), 1.0).get("servers")
        names = [f"{row['pool']}/{row['name']}" for row in rows]
    except (L7lbError, OSError, KeyError, TypeError):
        return []
    return [name for name in names if name.startswith(incomplete)]


def pool_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """For the shell's completion: the running node's pools that have servers."""
    pools = {name.partition("/")[0] for name in server_names(ctx, parameter, "")}
    return sorted(pool for pool in pools if pool.startswith(incomplete))


server_argument = click.argument("server", metavar="[POOL/]SERVER", shell_complete=server_names)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="l7lb", message="%(prog)s %(version)s")
def cli() -> None:
    """A content-aware load balancer cluster for mail, media and web."""


# --- the node itself ----------------------------------------------------------------------------------------------


@cli.command()
@config_option
def serve(config: Path | None) -> None:
    """Run a node in the foreground.

    SIGHUP or `l7lb reload` reloads the configuration, SIGTERM drains and ends, SIGUSR2 hands the listeners to a new
    process of the installed version.
    """
    from l7lb.app import serve as run

    sys.exit(run(configuration(config)))


@cli.command()
@config_option
def check(config: Path | None) -> None:
    """Check a configuration.

    Exits with 0, or with 1 and every error as FILE:LINE:COLUMN: path: what is wrong, what would be right.
    """
    path = configuration(config)
    found = loaded(path)
    for warning in found.warnings:
        click.echo(f"{warning} (a warning)", err=True)
    snapshot = found.snapshot
    servers = sum(len(pool.servers) for pool in snapshot.pools)
    numbers = ((len(snapshot.listeners), "listener"), (len(snapshot.pools), "pool"), (servers, "server"))
    parts = ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for number, word in numbers)
    click.echo(f"{path}: good: {parts}")


@cli.command()
def schema() -> None:
    """Print the JSON schema of the configuration, for editors."""
    from l7lb.config import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@cli.command()
@click.argument("protocol")
@click.argument("request", nargs=-1)
@click.option("--header", "-H", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header; repeatable.")
@click.option("--alpn", multiple=True, metavar="NAME", help="A protocol that a TLS client offers; repeatable.")
@click.option("--source", default="127.0.0.1", show_default=True, metavar="IP", help="The client's address.")
@click.option("--listener", default="", metavar="NAME", help="Which listener. [default: the only one of the protocol]")
@admin_options
@json_option
def explain(
    protocol: str,
    request: tuple[str, ...],
    headers: tuple[str, ...],
    alpn: tuple[str, ...],
    source: str,
    listener: str,
    admin: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Say where a request goes, and why, rule by rule.

    \b
    l7lb explain http GET http://example.org/x -H 'cookie: beta=yes'
    l7lb explain tls-passthrough bank.example.com --alpn h2
    l7lb explain tcp 192.0.2.1
    l7lb explain imap4 user@example.com

    With --admin as the running node sees its servers now, else as they are configured.
    """
    from l7lb.core.mailbox import MAIL_PROTOCOLS

    question: dict[str, Any] = {"protocol": protocol, "source": source, "listener": listener}
    if protocol == "http":
        if len(request) != 2:
            text = "explain http takes a method and a URL, such as: explain http GET http://example.org/"
            raise click.UsageError(text)
        question |= {"method": request[0], "url": request[1], "headers": [_header(text) for text in headers]}
    elif protocol == "tls-passthrough":
        if len(request) > 1:
            raise click.UsageError("explain tls-passthrough takes the name that is asked for, or none")
        question |= {"sni": request[0] if request else "", "alpn": list(alpn)}
    elif protocol == "tcp":
        if len(request) > 1:
            raise click.UsageError("explain tcp takes the client's address, such as: explain tcp 192.0.2.1")
        question["source"] = request[0] if request else source
    elif protocol in MAIL_PROTOCOLS:
        if len(request) != 1:
            raise click.UsageError(f"explain {protocol} takes an address, such as: explain {protocol} user@example.com")
        question["address"] = request[0]
    else:
        known = ", ".join(sorted(MAIL_PROTOCOLS))
        raise click.UsageError(f"{protocol} can't be explained: http, {known}, tls-passthrough and tcp can")
    if admin is not None:
        show(client(admin, config).post("explain", **question), as_json, "explained")
        return
    import msgspec

    from l7lb.control.explaining import Question
    from l7lb.control.explaining import explain as explain_here

    answer = explain_here(loaded(config).snapshot, msgspec.convert(question, Question))
    show(msgspec.to_builtins(answer), as_json, "explained")


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.UsageError(f"{text!r} is no header: write 'NAME: VALUE'")
    return name.strip(), value.strip()


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion for a shell.

    bash: source <(l7lb completion bash); zsh: the same; fish: l7lb completion fish | source
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "l7lb", "_L7LB_COMPLETE").source())


@cli.command()
@click.argument("what", type=click.Choice(["web", "mail"]), required=False)
def demo(what: str | None) -> None:
    """Show l7lb at work, in half a minute each: with web servers, then with mail servers.

    Starts servers, a node and clients on this machine, explains where they go, kills a server under load, drains
    another or moves a mailbox, changes the rules. Exit 0 where nobody noticed, else 1. Nothing is left behind.
    """
    from importlib import import_module

    for one in [what] if what else ["web", "mail"]:
        code = import_module(f"l7lb.demo.{one}").run()
        if code:
            sys.exit(code)


# --- to see -------------------------------------------------------------------------------------------------------


@cli.command()
@admin_options
@json_option
def status(admin: Path | None, config: Path | None, as_json: bool) -> None:
    """Show the node: its processes, workers and listeners."""
    show(client(admin, config).get("status"), as_json, "status")


@cli.command()
@click.argument("pool", required=False, shell_complete=pool_names)
@admin_options
@json_option
def servers(pool: str | None, admin: Path | None, config: Path | None, as_json: bool) -> None:
    """Show the servers: state, weight, sessions, and why."""
    show(client(admin, config).get("servers", pool=pool), as_json, "servers")


@cli.command()
@click.option("--mailbox", metavar="NAME", help="Only those of this mailbox, as its address or by its own name.")
@click.option("--protocol", metavar="NAME", help="Only those in this protocol: http, imap4, pop3 ...")
@click.option("--address", metavar="ADDRESS", help="Only those of clients at this address, or in this network.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Rows at most.")
@admin_options
@json_option
def sessions(
    mailbox: str | None,
    protocol: str | None,
    address: str | None,
    limit: int,
    admin: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Show what is in progress."""
    node = client(admin, config)
    rows = node.get("sessions", limit=limit, mailbox=mailbox, protocol=protocol, address=address)
    show(rows, as_json, "sessions")


@cli.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Rows at most.")
@admin_options
@json_option
def limits(limit: int, admin: Path | None, config: Path | None, as_json: bool) -> None:
    """Show who is the nearest to a rate limit, or over it."""
    show(client(admin, config).get("limits", limit=limit), as_json, "limits")


@cli.group()
def directory() -> None:
    """Ask the running node's directories."""


@directory.command("ask")
@click.argument("address")
@click.option("--directory", "names", multiple=True, metavar="NAME", help="Only this one; repeatable.")
@admin_options
@json_option
def directory_ask(address: str, names: tuple[str, ...], admin: Path | None, config: Path | None, as_json: bool) -> None:
    """Show what each directory says of an ADDRESS: its mailbox, its server, and whether a pool has that.

    What the node remembers is shown as a login would meet it. A directory that judges passwords is asked without one.
    """
    show(client(admin, config).get("directory", address=address, directory=list(names)), as_json, "directory")


@cli.group()
def table() -> None:
    """Look into the sticky tables, and change them.

    A table is POOL/KIND, for headers and cookies POOL/KIND/NAME, or just the POOL where it has one. A key is what the
    user shows: an address, a header's or cookie's value, a TLS session in hexadecimal, or digest:HEX.
    """


@table.command("list")
@admin_options
@json_option
def table_list(admin: Path | None, config: Path | None, as_json: bool) -> None:
    """Show the tables: entries, limit, memory, pins, hits, evictions."""
    show(client(admin, config).get("tables"), as_json, "sticky_tables")


@table.command("find")
@click.argument("table")
@click.argument("key", required=False)
@click.option("--server", metavar="SERVER", help="Only entries of this server.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Rows at most.")
@admin_options
@json_option
def table_find(
    table: str, key: str | None, server: str | None, limit: int, admin: Path | None, config: Path | None, as_json: bool
) -> None:
    """Show the entry of a KEY, or entries of a server, or any."""
    found = client(admin, config).get("table", table=table, key=key, server=server, limit=limit)
    show(found, as_json, "sticky_entries")


@table.command("delete")
@click.argument("table")
@click.argument("key", required=False)
@click.option("--server", metavar="SERVER", help="All entries of this server.")
@admin_options
def table_delete(table: str, key: str | None, server: str | None, admin: Path | None, config: Path | None) -> None:
    """Forget the entry of a KEY, or all entries of a server; pins too."""
    answer = client(admin, config).post("table-delete", table=table, key=key or "", server=server or "")
    click.echo(answer["done"])


@table.command("pin")
@click.argument("table")
@click.argument("key")
@click.argument("server")
@click.option("--for", "how_long", default="forever", show_default=True, metavar="TIME", help="30m, 1h, 7d, forever.")
@admin_options
def table_pin(table: str, key: str, server: str, how_long: str, admin: Path | None, config: Path | None) -> None:
    """Keep a KEY on a SERVER, whatever is learned."""
    from l7lb.config.units import parse_duration

    try:
        seconds = 0.0 if how_long == "forever" else parse_duration(how_long)
    except ValueError as error:
        raise click.UsageError(f"--for: {error}, or forever") from None
    if how_long != "forever" and not seconds:
        raise click.UsageError("--for: nothing is no time to pin for; `l7lb table delete` ends a pin")
    answer = client(admin, config).post("table-pin", table=table, key=key, server=server, seconds=seconds)
    click.echo(answer["done"])


@cli.command()
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Print one picture and end.")
@admin_options
def top(interval: float, once: bool, admin: Path | None, config: Path | None) -> None:
    """Watch the servers live; q ends."""
    from l7lb.control.top import run

    run(client(admin, config, 10.0), interval, once)


# --- to change ----------------------------------------------------------------------------------------------------


def verb(name: str, text: str) -> None:
    """A command that takes one server."""

    @cli.command(name, help=text)
    @server_argument
    @admin_options
    def command(server: str, admin: Path | None, config: Path | None) -> None:
        click.echo(client(admin, config).post(name, server=server)["done"])


@cli.command()
@server_argument
@click.option("--rate", metavar="RATE", help="Move its mailboxes away, so many in a time: 10/s, 100/m.")
@admin_options
def drain(server: str, rate: str | None, admin: Path | None, config: Path | None) -> None:
    """Send a server no new users.

    The users it has, sticky ones too, stay until they end. With --rate mailboxes that it has are moved away: their
    sessions end, and where they log in again is another server.
    """
    from l7lb.config.units import parse_rate

    try:
        speed = parse_rate(rate) if rate is not None else 0.0
    except ValueError as error:
        raise click.UsageError(f"--rate: {error}") from None
    click.echo(client(admin, config).post("drain", server=server, rate=speed)["done"])


@cli.command()
@click.argument("mailbox")
@server_argument
@admin_options
def move(mailbox: str, server: str, admin: Path | None, config: Path | None) -> None:
    """Move a mailbox to a server.

    Its sessions are ended, logins that come meanwhile wait, and the configuration's hook runs before it is there.
    """
    click.echo(client(admin, config, 170.0).post("move", mailbox=mailbox, server=server)["done"])


@cli.command()
@click.argument("mailbox")
@admin_options
def kick(mailbox: str, admin: Path | None, config: Path | None) -> None:
    """End the sessions of a mailbox, in every protocol. It stays on its server."""
    click.echo(client(admin, config).post("kick", mailbox=mailbox)["done"])


verb("undrain", "Take a drain back.")
verb("disable", "Send a server nobody, not even sticky users.")
verb("enable", "Take a drain or a disable back.")
verb("remove-server", "Take a server out of its pool.\n\nIts sessions go on until they end.")


@cli.command()
@server_argument
@click.argument("weight", metavar="N|configured")
@admin_options
def weight(server: str, weight: str, admin: Path | None, config: Path | None) -> None:
    """Set a server's weight.

    From 0, which sends it no new users, to 65535; the word configured goes back to what the file says.
    """
    if weight != "configured" and not (weight.isascii() and weight.isdigit()):
        raise click.UsageError(f"{weight!r} is no weight: a number from 0 to 65535, or the word configured")
    value = None if weight == "configured" else int(weight[:9])
    click.echo(client(admin, config).post("weight", server=server, weight=value)["done"])


@cli.command("add-server")
@click.argument("pool", shell_complete=pool_names)
@click.argument("name")
@click.argument("address", default="")
@click.option("--weight", type=click.IntRange(0, 65_535), default=1, show_default=True)
@click.option("--max-connections", type=click.IntRange(0), default=0, help="Of the whole node. [default: no limit]")
@click.option("--backup", is_flag=True, help="Use it only when no other server is open.")
@click.option("--send-proxy", type=click.Choice(["v1", "v2"]), help="Begin its connections with a PROXY header.")
@click.option(
    "--port", "ports", multiple=True, metavar="PROTOCOL=PORT", help="One of several ports; then ADDRESS is HOST."
)
@admin_options
def add_server(
    pool: str,
    name: str,
    address: str,
    weight: int,
    max_connections: int,
    backup: bool,
    send_proxy: str | None,
    ports: tuple[str, ...],
    admin: Path | None,
    config: Path | None,
) -> None:
    """Add a server to a pool.

    ADDRESS is HOST:PORT or unix:PATH. Without one a server that was removed is brought back.
    """
    by_protocol: dict[str, int] = {}
    for word in ports:
        protocol, _, number = word.partition("=")
        if not number.isascii() or not number.isdigit():
            raise click.BadParameter(f"{word!r} is not PROTOCOL=PORT, such as imap4=143", param_hint="--port")
        by_protocol[protocol] = int(number[:6])
    node = client(admin, config)
    answer = node.post(
        "add-server",
        pool=pool,
        name=name,
        address=address,
        weight=weight,
        max_connections=max_connections,
        backup=backup,
        send_proxy=send_proxy or "",
        ports=by_protocol,
    )
    click.echo(answer["done"])


@cli.command()
@admin_options
def reload(admin: Path | None, config: Path | None) -> None:
    """Put the changed configuration into force.

    A wrong one is refused with every error, and the old one stays. Established connections are not touched.
    """
    answer = client(admin, config).post("reload")
    for note in answer.get("notes", ()):
        click.echo(note, err=True)
    click.echo(answer["done"])


def main() -> None:
    """The console command."""
    cli(prog_name="l7lb")


if __name__ == "__main__":
    main()
