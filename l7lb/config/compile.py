"""From the validated file to what the node runs: an immutable snapshot, and the supervisor's own settings."""

from __future__ import annotations

import os
from pathlib import Path

from l7lb.config.addresses import parse_bind
from l7lb.config.model import WORKERS, Configuration
from l7lb.config.naming import node_name
from l7lb.config.section import Reading
from l7lb.config.settings import NodeSettings
from l7lb.core.snapshot import AccessLog, Snapshot, Tables

STANDARD_OUTPUT = "-"


def compile_snapshot(configuration: Configuration, reading: Reading) -> Snapshot:
    """The snapshot with version and slots 0, which the supervisor assigns."""
    listeners = tuple(listener.compiled(reading) for listener in configuration.listeners)
    log = configuration.access_log
    return Snapshot(
        node=node_name(configuration.node),
        version=0,
        listeners=listeners,
        pools=tuple(
            pool.compiled(name, configuration.protocols(name), reading.base)
            for name, pool in configuration.pools.items()
        ),
        workers=_workers(configuration),
        access_log=AccessLog(_log_path(log.path, reading.base), log.format) if log else None,
        tables=Tables(configuration.tables.size),
        drain=configuration.shutdown.drain,
        file=reading.file,
        directories=tuple(
            directory.compiled(name, reading.base) for name, directory in configuration.directories.items()
        ),
    )


def compile_settings(configuration: Configuration, reading: Reading, file: Path) -> NodeSettings:
    """The supervisor's settings."""
    admin = configuration.admin
    return NodeSettings(
        file=file,
        node=node_name(configuration.node),
        admin_socket=reading.base / admin.socket,
        metrics=parse_bind(admin.metrics) if admin.metrics else None,
        state=reading.base / configuration.state if configuration.state else None,
        user=configuration.user,
        group=configuration.group,
        log_level=configuration.log.level,
        log_format=configuration.log.format,
        without_supervisor=configuration.shutdown.without_supervisor,
        drain=configuration.shutdown.drain,
        move_hook=configuration.mailboxes.compiled(),
    )


def _workers(configuration: Configuration) -> int:
    if isinstance(configuration.workers, int):
        return configuration.workers
    return min(len(os.sched_getaffinity(0)), WORKERS)


def _log_path(path: str, base: Path) -> str:
    return path if path == STANDARD_OUTPUT else str(base / path)
