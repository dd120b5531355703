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
