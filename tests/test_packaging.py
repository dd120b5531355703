"""What packaging/ holds fits the project: systemd accepts the units, and the image copies what is there."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGING = ROOT / "packaging"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for name in ("l7lb.service", "l7lb.socket"):
        text = (PACKAGING / name).read_text().replace("/usr/bin/l7lb", "/bin/true")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "l7lb.service"), str(tmp_path / "l7lb.socket")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line or line.startswith("l7lb.")]
    assert ours == []


def test_the_service_leaves_the_workers_alone_and_starts_what_there_is() -> None:
    text = (PACKAGING / "l7lb.service").read_text()
    for line in ("Type=notify", "NotifyAccess=all", "KillMode=process", "RuntimeDirectoryPreserve=restart"):
        assert line in text.splitlines()
    commands = re.findall(r"^Exec\w+=/usr/bin/l7lb (\w+)", text, re.MULTILINE)
    assert commands == ["check", "serve", "reload"]


def test_the_image_copies_what_is_there() -> None:
    text = (PACKAGING / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert "l7lb" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
    for lock in re.findall(r"-r (requirements/\S+)", text):
        assert (ROOT / lock).exists(), lock


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports; of ``from package import name`` both, since the name may be a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_build_of_its_own_has_the_libraries_whose_types_the_compiler_needs() -> None:
    todo = [ROOT / name for name in re.findall(r'"(l7lb/[\w/]+\.py)"', (ROOT / "setup.py").read_text())]
    seen: set[Path] = set()
    libraries: set[str] = set()
    while todo:
        path = todo.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        for name in imported(path):
            place = ROOT / name.replace(".", "/")
            if name.startswith("l7lb"):
                todo += [place.with_suffix(".py"), place / "__init__.py"]
            elif name.partition(".")[0] not in sys.stdlib_module_names:
                libraries.add(name.partition(".")[0])
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert "msgspec" in libraries
    assert libraries <= {Requirement(text).name.replace("-", "_") for text in build}


def test_what_a_compiled_function_requires_comes_before_what_has_a_default() -> None:
    """Python allows both orders after ``*``; mypyc fails at functions of a module that have the other one."""
    wrong = []
    for name in re.findall(r'"(l7lb/[\w/]+\.py)"', (ROOT / "setup.py").read_text()):
        for node in ast.parse((ROOT / name).read_text()).body:
            if isinstance(node, ast.FunctionDef):
                optional = [default is not None for default in node.args.kw_defaults]
                if optional != sorted(optional) or (node.args.defaults and not all(optional)):
                    wrong.append(f"{name}:{node.lineno}: {node.name}")
    assert wrong == []
