"""A whole file: from the text to the snapshot, in each format; and files that can't be read at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import config_expected as expected
import pytest
from config_writing import to_json, to_toml, to_yaml

from l7lb.config import load
from l7lb.config.document import plain
from l7lb.config.formats import yaml_text
from l7lb.config.protocols.http import FORWARDING
from l7lb.core import snapshot
from l7lb.core.errors import ConfigurationError, Problem
from l7lb.core.snapshot import Address
from l7lb.routing.router import Router

TEXT = (Path(__file__).parent / "web.yaml").read_text()
SECRET = b"0123456789abcdef0123456789abcdef\n"
KEY = hashlib.sha256(b"l7lb cookie key\0" + SECRET.strip()).hexdigest()
SMALL = """\
listeners:
  - {name: web, protocol: http, bind: ["127.0.0.1:8080"], routes: [{pool: web}]}
pools:
  web: {servers: [{name: a, address: "127.0.0.1:9001"}]}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "cookie.key").write_bytes(SECRET)
    return tmp_path


def data() -> dict[str, object]:
    """The fixture as plain data, without what only YAML and the file itself need."""
    root = yaml_text.parse(TEXT, "web.yaml")
    assert root is not None
    whole = dict(plain(root, "web.yaml"))
    del whole["x-anything"], whole["user"]
    return whole


def refusal(path: str | Path, **arguments: str | bytes) -> Problem:
    with pytest.raises(ConfigurationError) as caught:
        load(path, **arguments)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_yaml_compiles_to_the_snapshot(directory: Path) -> None:
    (directory / "web.yaml").write_text(TEXT)
    loaded = load(directory / "web.yaml")
    assert loaded.snapshot == expected.snapshot(directory, "web.yaml", [23, 29, 31, 33, 36], KEY)
    assert loaded.warnings == []


@pytest.mark.parametrize(("ending", "write"), [("json", to_json), ("toml", to_toml), ("yml", to_yaml)])
def test_formats_mean_the_same(directory: Path, ending: str, write: object) -> None:
    file = f"web.{ending}"
    text = write(data())  # type: ignore[operator]
    (directory / file).write_text(text)
    loaded = load(directory / file)
    lines = [int(route.where.partition(":")[2]) for route in loaded.snapshot.listeners[0].routes]
    assert loaded.snapshot == expected.snapshot(directory, file, lines, KEY)
    assert lines == sorted(set(lines))
    assert all(lines)


def test_the_snapshot_survives_the_wire(directory: Path) -> None:
    compiled = load(directory / "web.yaml", text=TEXT).snapshot
    assert snapshot.decode(snapshot.encode(compiled)) == compiled


def test_the_router_takes_what_compiles(directory: Path) -> None:
    for listener in load(directory / "web.yaml", text=TEXT).snapshot.listeners:
        Router(listener)


def test_settings(directory: Path) -> None:
    settings = load(directory / "web.yaml", text=TEXT).settings
    assert settings.file == directory / "web.yaml"
    assert settings.node == "edge"
    assert settings.admin_socket == directory / "sockets/admin.sock"
    assert settings.metrics == Address("127.0.0.1", 9400)
    assert settings.state == directory / "state"
    assert (settings.user, settings.group) == (None, None)
    assert (settings.log_level, settings.log_format) == ("warning", "json")
    assert (settings.drain, settings.without_supervisor) == (12.0, 1800.0)


def test_defaults(tmp_path: Path) -> None:
    loaded = load(tmp_path / "small.yaml", text=SMALL)
    compiled = loaded.snapshot
    listener = snapshot.Listener(
        name="web",
        protocol="http",
        bind=(Address("127.0.0.1", 8080),),
        routes=(snapshot.Route(number=1, where="small.yaml:2", match=None, action=snapshot.ToPool("web")),),
        settings={
            "trust": [],
            "send": list(FORWARDING),
            "timeouts": {"request_header": 10.0, "request_body": 60.0, "keep_alive": 15.0, "tunnel": 3600.0},
            "upgrades": "any",
            "http2": {
                "prior_knowledge": True,
                "max_concurrent_streams": 100,
                "stream_window": 65536,
                "connection_window": 1048576,
                "frame_bytes": 16384,
                "resets": 200,
                "control_frames": 2000,
            },
            "header_bytes": 32768,
            "headers": 100,
            "body_bytes": 10737418240,
            "pipeline_bytes": 65536,
        },
    )
    # What isn't given is what the core's own defaults say.
    assert compiled.listeners == (listener,)
    assert compiled.pools == (
        snapshot.Pool(name="web", servers=(snapshot.Server(name="a", address=Address("127.0.0.1", 9001)),)),
    )
    assert compiled.workers == min(len(os.sched_getaffinity(0)), 64)
    assert compiled.node
    assert compiled.access_log is None
    assert compiled.drain == loaded.settings.drain == 30.0
    assert compiled.tables == snapshot.Tables()
    assert loaded.settings.admin_socket == tmp_path / "run/admin.sock"
    assert loaded.settings.metrics is None
    assert loaded.settings.without_supervisor == 3600.0
    assert loaded.warnings == []


def test_the_snapshots_defaults_are_the_configurations() -> None:
    """An empty section is worth as much as none, where both are allowed."""
    text = SMALL.replace("{servers:", "{health: {tcp: {}}, outliers: {}, retries: {}, timeouts: {}, servers:")
    pool = load("x.yaml", text=text).snapshot.pools[0]
    assert pool.health == snapshot.Health(kind="tcp")
    assert pool.outliers == snapshot.Outliers()
    assert pool.retries == snapshot.Retries()
    assert pool.timeouts == snapshot.PoolTimeouts()


def test_groups_of_a_regular_expression_stand_in_templates() -> None:
    rule = '{match: {path_regex: ["^/(a)(b)", "^/(c)d(e)"]}, rewrite: {path: "/{path.2}"}, pool: web}'
    compiled = load("x.yaml", text=SMALL.replace("{pool: web}", rule)).snapshot
    assert compiled.listeners[0].routes[0].rewrite == snapshot.Rewrite("/{path.2}")
    Router(compiled.listeners[0])


def test_a_byte_order_mark_is_passed_over() -> None:
    assert load("x.yaml", text=b"\xef\xbb\xbf" + SMALL.encode()).snapshot.pools


def test_the_operators_own_keys() -> None:
    assert load("x.yaml", text="x-mine: [1, {a: b}]\n" + SMALL).snapshot == load("x.yaml", text="\n" + SMALL).snapshot


# --- files that can't be read ---------------------------------------------------------------------------------------


def test_no_such_file(tmp_path: Path) -> None:
    assert str(refusal(tmp_path / "no.yaml")) == f"{tmp_path}/no.yaml:0:0: there is no such file"


def test_a_directory(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").mkdir()
    assert "is a directory" in refusal(tmp_path / "d.yaml").message


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "is not a file" in refusal(tmp_path / "pipe.yaml").message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text(SMALL)
    (tmp_path / "secret.yaml").chmod(0)
    assert "can't be read: Permission denied" in refusal(tmp_path / "secret.yaml").message


def test_a_name_that_no_file_has() -> None:
    assert "can't be read" in refusal("a\0b.yaml").message
    assert "can't be read" in refusal("a" * 5000 + ".yaml").message


@pytest.mark.parametrize("ending", [".conf", "", ".yaml.bak"])
def test_unknown_endings(ending: str) -> None:
    assert "known: .yaml, .yml, .json, .toml" in refusal(f"file{ending}").message


def test_unknown_formats() -> None:
    assert refusal("x.yaml", text="", format="ini").message == 'the format "ini" is not known; known: yaml, json, toml'


@pytest.mark.parametrize("ending", ["yaml", "json", "toml"])
@pytest.mark.parametrize("text", ["", "\n\n", "  \n"])
def test_empty_files(ending: str, text: str) -> None:
    problem = refusal(f"x.{ending}", text=text)
    assert (problem.line, problem.column) == (1, 1)
    assert "the file is empty" in problem.message


@pytest.mark.parametrize("text", ["# nothing\n", "---\n", "--- ~\n", "null\n"])
def test_yaml_with_nothing_in_it(text: str) -> None:
    assert "the file is empty" in refusal("x.yaml", text=text).message


@pytest.mark.parametrize(("text", "what"), [("[1]", "a list"), ('"x"', '"x"'), ("5", "the number 5")])
@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_not_a_mapping(ending: str, text: str, what: str) -> None:
    assert (
        f"must be a mapping with keys such as listeners and pools, not {what}"
        in refusal(f"x.{ending}", text=text).message
    )


def test_not_utf_8() -> None:
    problem = refusal("x.yaml", text=b"node: a\nnode: b\xff\n")
    assert (problem.line, problem.column) == (2, 8)
    assert "0xff" in problem.message
    assert "UTF-16" in refusal("x.yaml", text="node: a".encode("utf-16")).message


def test_too_large(tmp_path: Path) -> None:
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(17 * 1024 * 1024)
    assert refusal(tmp_path / "large.yaml").message == "is larger than 16 MiB"


def test_all_problems_come_at_once_in_the_files_order() -> None:
    text = SMALL.replace("9001", "0").replace("8080", "x").replace("pool: web", "pool: wbe, respond: {}") + "nod: a\n"
    with pytest.raises(ConfigurationError) as caught:
        load("dir/x.yaml", text=text)
    assert [str(problem).partition(": ")[0] for problem in caught.value.problems] == [
        "dir/x.yaml:2:40",
        "dir/x.yaml:2:72",
        "dir/x.yaml:2:86",
        "dir/x.yaml:4:38",
        "dir/x.yaml:5:1",
    ]
    assert str(caught.value).count("\n") == 4
