"""How a supervisor comes to life: configuration, place, keeper, privileges; see :mod:`l7lb.control.supervisor`."""

from __future__ import annotations

import asyncio
import importlib
import os
import pwd
import signal
from collections.abc import Mapping
from pathlib import Path

import structlog

from l7lb.config import Loaded, NodeSettings, load
from l7lb.control import logs
from l7lb.control.keeper_client import KeeperClient, KeeperGone, KeeperRefused
from l7lb.control.place import Place, StartProblem
from l7lb.control.supervisor import Supervisor
from l7lb.core.contracts import ProtocolSpec
from l7lb.proxy.workers import privileges
from l7lb.proxy.workers.privileges import User

log = structlog.get_logger("l7lb.supervisor")

# What libraries import at their first use. The program may be installed where the node's user can't read it.
LATE = ("concurrent.futures.thread", "dns._asyncio_backend", "encodings.ascii", "encodings.idna", "icmplib")

TAKE_OVER = 60.0  # seconds in which the old supervisor yields
LEAVING = 30.0  # seconds beyond the drain in which a node that is ending makes room


def run(config: Path, protocols: Mapping[str, ProtocolSpec], replace: bool = False) -> int:
    """Run a node; returns the exit code. ``replace``: take it over from the supervisor that runs it.

    Raises ConfigurationError, or another L7lbError where the node can't start.
    """
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # until there is a node to do with it what they ask
    loaded = load(config.absolute())
    settings = loaded.settings
    logs.configure(settings.log_level, settings.log_format)
    for warning in loaded.warnings:
        log.warning(str(warning))
    try:
        return asyncio.run(_run(loaded, protocols, replace))
    except asyncio.CancelledError:
        log.info("told to end before the node was begun")
        return 0


async def _run(loaded: Loaded, protocols: Mapping[str, ProtocolSpec], replace: bool) -> int:
    settings, task = loaded.settings, asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)  # until the supervisor sets its own
    place = Place(settings)
    try:
        if replace:
            keeper = await _take_over(place)
            place.lock()
        else:
            user = _user(settings)
            privileges.raise_file_limit()
            place.prepare(settings, loaded.snapshot, user)
            place.lock()
            keeper = await _find_keeper(place, loaded, user)
            _become(keeper, user, settings)
        return await Supervisor(loaded, place, keeper, protocols, replace).run()
    finally:
        place.unlock()


def _user(settings: NodeSettings) -> User | None:
    """Who the node's processes run as; None: as whoever we are. Raises StartProblem."""
    if settings.user is None:
        return None
    try:
        user = privileges.find(settings.user, settings.group)
    except privileges.UnknownUser as error:
        raise StartProblem(f"user: {error}") from None
    if os.geteuid() != 0:
        if user.uid != os.geteuid():
            ours = pwd.getpwuid(os.geteuid()).pw_name
            log.warning(f"user: {settings.user} is ignored: only root can become another user, and this is {ours}")
        return None
    return user


async def _find_keeper(place: Place, loaded: Loaded, user: User | None) -> KeeperClient:
    """The keeper that lives here, or a new one. Raises StartProblem."""
    try:
        keeper = await KeeperClient.connect(place.keeper)
        if keeper is not None:
            await keeper.hello("supervisor")
            if not keeper.state["ending"]:
                return keeper
            log.info("the node that ran here is still ending")
            if not await keeper.ended(loaded.settings.drain + LEAVING):
                raise StartProblem(f"the node that ran here does not end; its keeper is {keeper.state['pid']}")
            keeper.close()
        keeper = KeeperClient.start(loaded.settings, user)
        await keeper.hello("supervisor")
    except OSError as error:
        raise StartProblem(f"{place.keeper}: {error.strerror or error}") from None
    except KeeperRefused as error:
        raise StartProblem(str(error)) from None
    except KeeperGone:
        raise StartProblem("the keeper could not start; its line in the log says why") from None
    return keeper


def drop(user: User) -> None:
    """Become that user, with all code loaded that will be needed."""
    for name in LATE:
        importlib.import_module(name)
    privileges.drop(user)


def _become(keeper: KeeperClient, user: User | None, settings: NodeSettings) -> None:
    """Give up privileges: for the user that the node runs as since it was started."""
    known = User.parse(keeper.state["user"]) if keeper.state["user"] else None
    if known != user and os.geteuid() == 0:
        log.warning("user: has changed: that takes effect when the node is ended and started", now=str(known))
    if known is not None and os.geteuid() == 0:
        drop(known)
        if not os.access(settings.file, os.R_OK):
            log.warning("the node's user can't read the configuration: it can't be reloaded", file=str(settings.file))


async def _take_over(place: Place) -> KeeperClient:
    """Become the supervisor in place of the one that runs. Raises StartProblem."""
    try:
        keeper = await KeeperClient.connect(place.keeper)
        if keeper is None:
            raise StartProblem("there is no node to take over")
        await keeper.hello("candidate")
        await keeper.request("take-over", patience=TAKE_OVER)
    except (OSError, KeeperRefused, KeeperGone) as error:
        raise StartProblem(f"the node can't be taken over: {error}") from None
    return keeper
