from __future__ import annotations

import os
from pathlib import Path

import pytest

from l7lb.config import load
from l7lb.control.locate import DEFAULT, admin_socket
from l7lb.core.errors import ConfigurationError

YAML = """\
admin: {socket: here/a.sock}
listeners: [{name: web, protocol: http, bind: ["127.0.0.1:0"], routes: [{pool: web}]}]
pools: {web: {servers: [{name: web1, address: "127.0.0.1:9001"}]}}
"""


@pytest.mark.parametrize(
    ("name", "text", "socket"),
    [
        ("a.yaml", YAML, "here/a.sock"),
        ("a.yml", YAML.replace("{socket: here/a.sock}", "{}"), DEFAULT),
        ("a.yaml", YAML.partition("\n")[2], DEFAULT),
        ("a.toml", '[admin]\nsocket = "/run/l7lb/a.sock"\n', "/run/l7lb/a.sock"),
        ("a.json", '{"admin": {"socket": "a.sock"}}', "a.sock"),
        ("a.yaml", YAML + "unknown: 1\n", "here/a.sock"),
    ],
)
def test_the_socket_is_found_without_the_rest(tmp_path: Path, name: str, text: str, socket: str) -> None:
    (tmp_path / name).write_text(text)
    assert admin_socket(tmp_path / name) == tmp_path / socket


def test_it_agrees_with_the_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "l7lb.yaml"
    for text in (YAML, YAML.partition("\n")[2]):
        file.write_text(text)
        assert os.path.realpath(admin_socket(file)) == os.path.realpath(load(file).settings.admin_socket)
        monkeypatch.chdir(tmp_path)
        assert admin_socket(Path("l7lb.yaml")) == admin_socket(file)


@pytest.mark.parametrize(
    "text",
    ["", "admin: [", "admin: 1", "admin: {socket: [x]}", "- x", "admin: {socket: ''}", "\x00", "admin: 1\nadmin: 2"],
)
def test_what_is_odd_is_left_to_the_loader(tmp_path: Path, text: str) -> None:
    (tmp_path / "l7lb.yaml").write_text(text)
    with pytest.raises(ConfigurationError):
        admin_socket(tmp_path / "l7lb.yaml")
    with pytest.raises(ConfigurationError, match="no such file"):
        admin_socket(tmp_path / "none.yaml")
