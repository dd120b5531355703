"""The login of a mail server's health check, in a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from l7lb.config import load
from l7lb.core.errors import ConfigurationError
from l7lb.core.snapshot import Health

TEXT = """\
node: lb1
listeners:
  - {{name: imap, protocol: imap4, bind: ["127.0.0.1:1143"], login: {{cleartext: always}}, routes: [{{pool: mail}}]}}
pools:
  mail:
    health: {{protocol: {check}}}
    servers: [{{name: mx1, host: 127.0.0.1, ports: {{imap4: 2143}}}}]
"""


def health(folder: Path, check: str) -> Health:
    found = load(folder / "l7lb.yaml", text=TEXT.format(check=check)).snapshot.pools[0].health
    assert found is not None
    return found


def test_a_user_and_a_password(tmp_path: Path) -> None:
    (tmp_path / "check").write_text("gehe im\n")
    assert health(tmp_path, "{user: check@example.com, password_file: check}").settings == {
        "user": "check@example.com", "password": "gehe im",
    }  # fmt: skip
    assert health(tmp_path, "{}").settings == {}


@pytest.mark.parametrize(
    ("check", "why"),
    [
        ("{user: check}", "has no password: give password_file"),
        ("{password_file: check}", "whose password is it? give user"),
        ("{user: a, password_file: none}", "none: there is no such file"),
        ("{user: a, password_file: binary}", "binary: is no text in UTF-8"),
        ("{user: a, password_file: lines}", "lines: must hold the password alone, in one line"),
        ("{user: a, password_file: empty}", "empty: is empty; it must hold the password"),
    ],
)
def test_what_can_not_be_a_login(tmp_path: Path, check: str, why: str) -> None:
    for name, content in {"check": b"x", "binary": b"\xff\xfe", "lines": b"a\nb\n", "empty": b"\n"}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ConfigurationError, match=r"pools\.mail\.health\.protocol\.(user|password_file): " + why[:8]
    ) as caught:
        health(tmp_path, check)
    assert why in str(caught.value)
