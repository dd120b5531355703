from __future__ import annotations

from pathlib import Path

import pytest

from l7lb.control.overrides import FILE, Override, Overrides, load, save
from l7lb.core.errors import L7lbError
from l7lb.core.snapshot import Address, Server


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    overrides = Overrides()
    overrides.put("web", "web1", Override(state="draining", state_since="2026-01-01T00:00:00Z"))
    overrides.added["web"] = [Server(name="web9", address=Address(host="10.0.0.9", port=80), weight=3)]
    overrides.removed["web"] = {"web2": "2026-01-01T00:00:00Z"}
    assert overrides.size() == 3
    save(tmp_path / "state", overrides)
    assert load(tmp_path / "state") == overrides
    assert [path.name for path in (tmp_path / "state").iterdir()] == [FILE]


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    assert load(tmp_path) == Overrides()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"servers": {"web": {"web1": {"weight": "x"}}}}', "\xff"])
def test_a_broken_file_is_set_aside_and_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(L7lbError, match=r"overrides.json: .*set aside as overrides.json.unreadable"):
        load(tmp_path)
    assert (tmp_path / "overrides.json.unreadable").read_bytes() == text.encode("latin-1")
    assert load(tmp_path) == Overrides()


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(L7lbError, match="Is a directory"):
        load(tmp_path)


def test_an_override_that_says_nothing_is_forgotten() -> None:
    overrides = Overrides()
    overrides.put("web", "web1", Override(weight=0))
    assert overrides.of("web", "web1") == Override(weight=0)
    overrides.put("web", "web1", Override())
    overrides.put("api", "api1", Override())
    overrides.tidy()
    assert overrides == Overrides()
