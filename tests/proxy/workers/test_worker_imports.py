"""What a worker doesn't import: it must stay small, and the control plane's libraries stay out of the traffic's way."""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = (
    "pydantic", "ruamel", "aiohttp", "click", "rich", "prometheus_client", "structlog", "dns", "icmplib", "ldap3",
    "l7lb.config", "l7lb.control", "l7lb.cli", "l7lb.testing",
)  # fmt: skip


def loaded_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_a_worker_imports_no_library_of_the_control_plane() -> None:
    modules = loaded_by(
        "import l7lb.app\nfrom l7lb.protocols import PROTOCOLS\nfrom l7lb.proxy.workers import worker\nworker.loop_factory()"
    )
    assert "l7lb.proxy.runtime" in modules
    assert "uvloop" in modules
    assert {name for name in modules for word in FORBIDDEN if name == word or name.startswith(f"{word}.")} == set()


def test_the_state_process_imports_even_less() -> None:
    modules = loaded_by(
        "import l7lb.app\nfrom l7lb.persistence import state\nfrom l7lb.proxy.workers import logs, privileges"
    )
    assert {
        name
        for name in modules
        for word in (*FORBIDDEN, "l7lb.protocols", "uvloop")
        if name == word or name.startswith(f"{word}.")
    } == set()


def test_the_directory_process_has_loaded_what_it_needs_before_it_gives_up_privileges() -> None:
    ask = """
import asyncio, l7lb.app
from l7lb.routing.directory import file, http, ldap, process
process.load_late()
before = set(sys.modules)
from l7lb.core.directory import Question
from l7lb.core.snapshot import Directory, FileSource, HttpSource, LdapSource
async def work():
    service = process.Service()
    ldap = LdapSource(urls=("ldap://localhost:1", "ldaps://localhost:1"), base="", filter="(a={user})", attributes={})
    for number, source in enumerate(
        (ldap, HttpSource(url="http://localhost:1/"), FileSource(path="/nothing", columns=("address", "server")))
    ):
        result = await service.use(Directory(name=str(number), source=source), "us").find(Question(b"a@b"))
        assert result.status == "failed"
    await service.close()
asyncio.run(work())
late = sorted(set(sys.modules) - before)
"""
    run = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys\n{ask}\nprint(*late)"], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []
