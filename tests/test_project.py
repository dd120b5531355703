"""The project's own files agree with one another."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = ROOT / "requirements" / "runtime.txt"
TEST = ROOT / "requirements" / "test.txt"


def locked(path: Path) -> dict[str, str]:
    """Names and versions of a lock file; raises where a line has no hash."""
    pins = {}
    for block in re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).strip()):
        found = re.match(r"([A-Za-z0-9._-]+)==([^ ;\\]+)", block)
        assert found, block
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), f"{found[1]} has no hash"
        pins[re.sub(r"[-_.]+", "-", found[1]).lower()] = found[2]
    return pins


def check(requirements: list[str], pins: dict[str, str]) -> None:
    for text in requirements:
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in pins, f"{text} is not locked: make lock"
        assert requirement.specifier.contains(pins[name]), f"{text} is locked at {pins[name]}: make lock"


def test_the_lock_satisfies_the_project() -> None:
    check(PROJECT["dependencies"], locked(RUNTIME))
    check([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]], locked(TEST))


def test_both_locks_agree() -> None:
    tests = locked(TEST)
    assert {name: tests.get(name) for name in locked(RUNTIME)} == locked(RUNTIME)


@pytest.mark.parametrize("path", [RUNTIME, TEST], ids=lambda path: path.name)
def test_no_address_in_the_lock(path: Path) -> None:
    assert not re.search(r"://|--(index|extra-index|find-links)", path.read_text())
