"""A worker's shell: the process around one :class:`~l7lb.proxy.runtime.Runtime`.

Two lines lead out of it, and it lives on without either:

- the **control channel** from the keeper, its parent: which sockets to accept from, and when to leave;
- the **link** to the supervisor (``node.sock``): the configuration, the servers' health, questions. It is connected
  again for ever. Until a supervisor speaks, the snapshot is the last one, which the keeper held.

A worker that has lost its keeper can't be told of sockets any more; it goes on until a supervisor, which then has a new
keeper with new workers, tells it to drain, or until there has been none for ``without_supervisor`` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from l7lb import __version__
from l7lb.core import messages, snapshot
from l7lb.core.contracts import ProtocolSpec
from l7lb.core.messages import FromWorker, ToWorker
from l7lb.core.unixpath import short_path
from l7lb.limits import Limits
from l7lb.persistence import Tables
from l7lb.persistence.link import StateLink
from l7lb.proxy.counts import Counts
from l7lb.proxy.runtime import Runtime
from l7lb.proxy.workers import channel, logs, privileges, wire
from l7lb.proxy.workers.children import DIRECTORIES_SOCKET, NODE_SOCKET, STATE_SOCKET
from l7lb.routing.directory.link import DirectoryLink

log = logging.getLogger("l7lb.worker")

START = 10.0  # seconds until the keeper's first packet
COLLECT = (50_000, 20, 50)  # the collector's thresholds: little of what a request makes is in a cycle
UNTAUGHT = 2.0  # seconds that a new worker waits for the sticky tables before it accepts
UNSUPERVISED = 1.0  # seconds that a new worker waits for a supervisor's word before it accepts
FIRST_PAUSE = 0.05  # seconds before it connects again; doubled each time
LONGEST_PAUSE = 1.0
UNSENT = 4 * 1024 * 1024  # bytes for the supervisor that may wait; then reports are dropped
DRAIN = 30.0  # seconds, where no snapshot says


class Worker:
    """See the module."""

    def __init__(
        self,
        options: argparse.Namespace,
        protocols: Mapping[str, ProtocolSpec],
        control: socket.socket,
        counts: Counts,
        tables: Tables,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        limits = Limits()
        self.options = options
        self.directory = Path(options.directory)
        self._directories = DirectoryLink(self.loop, self.directory / DIRECTORIES_SOCKET)
        self._state_link = StateLink(tables, self.directory / STATE_SOCKET, limits)
        self.runtime = Runtime(
            self.loop,
            protocols,
            counts,
            tables,
            self.report,
            limits=limits,
            directories=self._directories,
            claims=self._state_link.claims,
        )
        self.configured = asyncio.Event()
        self.leaving = asyncio.Event()
        self.leave_within = 0.0
        self.patient = True
        self._control: socket.socket | None = control
        self._sockets: dict[str, dict[int, socket.socket]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._supervised = time.monotonic()
        self._tables = tables

    async def run(self) -> None:
        """Work until told to leave, then until the last connection has ended or the time is over."""
        control = self._control
        assert control is not None
        control.setblocking(False)
        self.loop.add_reader(control.fileno(), self._controlled)
        self.loop.add_signal_handler(signal.SIGTERM, self._terminated)
        self.loop.add_signal_handler(signal.SIGUSR1, self.runtime.reopen_logs)
        lasting = (self._state_link.run(), self._link_for_ever(), self._directories.run())
        tasks = [asyncio.ensure_future(work) for work in (*lasting, self._begin())]
        leaving = asyncio.ensure_future(self.leaving.wait())
        await asyncio.wait([*tasks[:-1], leaving], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()  # a fault: end, and let a successor begin anew
        await self._leave()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self) -> None:
        """Say that sockets are welcome, once there is a configuration, best with the supervisor's word on health."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNSUPERVISED):
                await self.configured.wait()
        if self.runtime.snapshot is None:
            await self.configured.wait()
        with contextlib.suppress(TimeoutError):
            # Before the tables are here, users that the node knows would be new to this worker.
            async with asyncio.timeout(UNTAUGHT):
                await self._state_link.synced.wait()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT)
        self._tell_keeper({"op": "ready"})

    async def _leave(self) -> None:
        for bind in list(self._sockets):
            self._serve(bind, frozenset(), [])
        self.runtime.drain(self.patient)
        try:
            async with asyncio.timeout(self.leave_within):
                await self.runtime.drained.wait()
        except TimeoutError:
            log.warning("%d connections are ended: their time is over", self.runtime.connections)
        self.runtime.close()

    def leave(self, seconds: float, patient: bool) -> None:
        """Accept nothing more, finish within so many seconds, end. A second call may shorten the time.

        ``patient``: others serve on, so that idle clients are waited for (see :meth:`Runtime.drain`).
        """
        if self.leaving.is_set():
            self.loop.call_later(seconds, self.runtime.drained.set)
            if self.patient and not patient:
                self.runtime.drain()
        self.patient = patient
        self.leave_within = seconds
        self.leaving.set()

    def _terminated(self) -> None:
        """SIGTERM to this worker alone: the keeper must look for a successor."""
        self._tell_keeper({"op": "leaving"})
        current = self.runtime.snapshot
        self.leave(current.drain if current is not None else DRAIN, patient=True)

    # --- the keeper -----------------------------------------------------------------------------------------------

    def _tell_keeper(self, packet: channel.Packet) -> None:
        if self._control is not None:
            with contextlib.suppress(BlockingIOError, channel.BrokenChannel):
                channel.send(self._control, packet)

    def _controlled(self) -> None:
        assert self._control is not None
        try:
            packet, descriptors = channel.receive(self._control)
        except BlockingIOError:
            return
        except channel.BrokenChannel as error:
            log.warning("the keeper is gone (%s): this worker goes on", error)
            self.loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
            return
        match packet.get("op"):
            case "serve":
                new = dict(zip(packet["new"], descriptors, strict=True))
                self._serve(packet["bind"], frozenset(packet["slots"]), list(new.items()))
            case "drain":
                self.leave(float(packet["seconds"]), patient=bool(packet.get("patient")))
            case _:
                channel.close_all(descriptors)

    def _serve(self, bind: str, slots: frozenset[int], new: list[tuple[int, int]]) -> None:
        """Accept from exactly these of a bind's sockets."""
        held = self._sockets.setdefault(bind, {})
        for slot, descriptor in new:
            held[slot] = sock = socket.socket(fileno=descriptor)
            self.runtime.accept_from(bind, sock)
        for slot in held.keys() - slots:
            sock = held.pop(slot)
            self.runtime.stop_accepting(bind, sock)
            sock.close()
        if not held:
            del self._sockets[bind]

    # --- the supervisor -------------------------------------------------------------------------------------------

    def report(self, message: FromWorker) -> None:
        """Tell the supervisor, if there is one that listens."""
        writer = self._writer
        if writer is not None and writer.transport.get_write_buffer_size() < UNSENT:
            writer.write(wire.frame(message))

    async def _link_for_ever(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await self._link()
            except (OSError, EOFError, TimeoutError, msgspec.MsgspecError, wire.TooLong) as error:
                if self._writer is not None:
                    log.info("the link to the supervisor has ended (%s)", str(error) or type(error).__name__)
                    self._writer.transport.abort()
                    self._writer = None
                    self._supervised = time.monotonic()
                    pause = FIRST_PAUSE
            alone = time.monotonic() - self._supervised
            if self._control is None and alone > self.options.without_supervisor and not self.leaving.is_set():
                log.warning("neither keeper nor supervisor for %.0f s: draining", alone)
                self._terminated()
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _link(self) -> None:
        with short_path(self.directory / NODE_SOCKET) as path:
            reader, writer = await asyncio.open_unix_connection(path)
        self._writer = writer
        current = self.runtime.snapshot
        version = current.version if current is not None else 0
        try:
            self.report(messages.Hello(messages.PROTOCOL, __version__, self.options.index, os.getpid(), version))
            while True:
                self._told(wire.to_worker.decode(await wire.receive(reader)))
        finally:
            writer.close()  # before the loop is

    def _told(self, message: ToWorker) -> None:
        match message:
            case messages.Configure():
                self.configure(message.snapshot)
            case messages.ServerHealth():
                self.runtime.server_health(message)
            case messages.Drain():
                self.leave(message.seconds, message.patient)
            case messages.AskSessions():
                rows = self.runtime.sessions(message.limit, message.wanted)
                self.report(messages.Sessions(message.question, rows))
            case messages.ReopenLogs():
                self.runtime.reopen_logs()

    def configure(self, wanted: snapshot.Snapshot) -> None:
        """Use that snapshot; the one before stays where it can't be used."""
        current = self.runtime.snapshot
        problem = ""
        if current is None or current != wanted:
            try:
                self._tables.resize(wanted.tables)
                self.runtime.apply(wanted)
                self._directories.use(wanted.directories)
            except Exception as error:  # a protocol's factory may raise anything, and the old snapshot still serves
                log.exception("configuration %d can't be used", wanted.version)
                problem = f"{type(error).__name__}: {error}"
        if self.runtime.snapshot is not None:
            self.configured.set()
        self.report(messages.Applied(wanted.version, problem))


def arguments(words: list[str]) -> argparse.Namespace:
    """A worker's command line, as the keeper writes it."""
    parser = argparse.ArgumentParser(prog="l7lb worker")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--block", type=int, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text")
    parser.add_argument("--without-supervisor", type=float, default=3600.0)
    return parser.parse_args(words)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's loop, or asyncio's where there is none."""
    try:
        import uvloop
    except ImportError:
        log.warning("uvloop is not installed: this worker runs on asyncio's loop, which is slower")
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def main(words: list[str], protocols: Mapping[str, ProtocolSpec]) -> int:
    """The process: called with privileges, if the keeper has any, which end before anything else begins."""
    options = arguments(words)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    logs.configure(f"worker {options.index}", options.log_level, options.log_format)
    new_loop = loop_factory()
    if options.user:
        privileges.drop(privileges.User.parse(options.user))
    control = socket.socket(fileno=options.control)
    control.set_inheritable(False)
    control.settimeout(START)
    try:
        _, descriptors = channel.receive(control)
    except (TimeoutError, channel.BrokenChannel) as error:
        log.error("the keeper gives no start: %s", error)
        return 1
    counts = Counts(descriptors[0], options.block)
    known = descriptors[1] if len(descriptors) > 1 else None
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_work(options, protocols, control, counts, known))
    return 0


async def _work(
    options: argparse.Namespace,
    protocols: Mapping[str, ProtocolSpec],
    control: socket.socket,
    counts: Counts,
    known: int | None,
) -> None:
    first = None
    if known is not None:
        with contextlib.suppress(ValueError, msgspec.MsgspecError):  # of another version: the supervisor sends its own
            first = snapshot.decode(channel.content(known, messages.LIMIT))
        os.close(known)
    tables = Tables(first.tables if first is not None else snapshot.Tables())
    worker = Worker(options, protocols, control, counts, tables)
    if first is not None:
        worker.configure(first)
        worker.configured.clear()  # the supervisor may know more
    await worker.run()
