"""What the documentation promises can be followed: links lead somewhere, and the first configuration works."""

import re
from pathlib import Path

import pytest

from l7lb.cli import cli
from l7lb.config import load

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")])
COMMANDS = sorted(set(cli.commands) - {"serve"})


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = page if not name else (page.parent / name)
        assert found.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(found), f"{name} has no heading for #{anchor}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command: str) -> None:
    assert re.search(rf"\b{command}\b", (ROOT / "README.md").read_text())


def test_the_first_configuration_works_as_it_stands(tmp_path: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) == 10
    path = tmp_path / "l7lb.yaml"
    path.write_text(blocks[0])
    assert load(path).warnings == []


def test_the_architecture_names_every_dependency() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None
    for name in re.findall(r'"([a-z0-9.-]+)', listed[1]):
        assert f"| {name} " in text


def test_what_the_architecture_names_is_there() -> None:
    for name in set(
        re.findall(r"`([a-z0-9_]+/[a-z0-9_/]*(?:\.py)?)`", (ROOT / "docs" / "architecture.md").read_text())
    ):
        assert (ROOT / "l7lb" / name).exists(), name
