"""The JSON schema agrees with what is accepted, and docs/configuration.md with the schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from config_marking import MARK
from config_reference import Schema, deref, sections
from test_config_mail import cases as mail_cases
from test_config_problems import HTTP, NODE, POOLS, RULES, SERVERS, STREAMS

from l7lb.config import json_schema, load
from l7lb.config.checks import ROWS
from l7lb.config.document import plain
from l7lb.config.formats import yaml_text
from l7lb.config.model import FIELDS, WORKERS
from l7lb.core.errors import ConfigurationError
from l7lb.proxy import counts

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = (ROOT / "docs" / "configuration.md").read_text()
TABLES = sections()
SCHEMA = json_schema()
NUMBERS = {"integer": int, "number": (int, float)}


def accepts(value: Any, node: Schema) -> bool:
    """Whether a schema accepts a value: the part of JSON Schema that ours uses, and nothing else."""
    node = deref(node, SCHEMA)
    assert set(node) <= {
        *("$schema", "$defs", "title", "description", "default", "examples", "type", "enum", "const", "anyOf"),
        *("properties", "patternProperties", "additionalProperties", "required", "items", "pattern"),
        *("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties"),
    }, node
    if "anyOf" in node and not any(accepts(value, each) for each in node["anyOf"]):
        return False
    if "const" in node and value != node["const"]:
        return False
    if "enum" in node and value not in node["enum"]:
        return False
    kind = node.get("type")
    if kind == "object":
        return isinstance(value, dict) and accepts_mapping(value, node)
    if kind == "array":
        items = node.get("items", {})
        return (
            isinstance(value, list)
            and node.get("minItems", 0) <= len(value) <= node.get("maxItems", len(value))
            and all(accepts(v, items) for v in value)
        )
    if kind == "string":
        length = (node.get("minLength", 0), node.get("maxLength", 10**9))
        return (
            isinstance(value, str)
            and length[0] <= len(value) <= length[1]
            and bool(re.search(node.get("pattern", ""), value))
        )
    if kind in NUMBERS:
        if isinstance(value, bool) or not isinstance(value, NUMBERS[kind]):  # type: ignore[arg-type]
            return False
        return bool(node.get("minimum", value) <= value <= node.get("maximum", value))
    if kind == "boolean":
        return isinstance(value, bool)
    return value is None if kind == "null" else True


def accepts_mapping(value: dict[str, Any], node: Schema) -> bool:
    if not all(key in value for key in node.get("required", ())) or len(value) < node.get("minProperties", 0):
        return False
    for key, inner in value.items():
        if key in node.get("properties", {}):
            schema = node["properties"][key]
        elif any(re.search(pattern, key) for pattern in node.get("patternProperties", {})):
            continue
        else:
            schema = node.get("additionalProperties", True)
        if schema is False or (isinstance(schema, dict) and not accepts(inner, schema)):
            return False
    return True


def data(text: str) -> Any:
    root = yaml_text.parse(text, "x")
    assert root is not None
    return plain(root, "x")


def test_the_schema_accepts_what_is_accepted() -> None:
    for name in ("web.yaml", "mail.yaml"):
        assert accepts(data((Path(__file__).parent / name).read_text()), SCHEMA)
    for text in ("pools: {}", "pools: {}\nnode: null", "x-a: [1]"):
        whole = "listeners: [{name: a, protocol: http, bind: [':80'], routes: [{respond: {status: 200}}]}]\n" + text
        load("x.yaml", text=whole)
        assert accepts(data(whole), SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "listeners: []",
        "listeners: [{name: a}]",
        "node: a",
        "listeners: [{name: a, protocol: smtp, bind: [':25'], routes: [{pool: a}], recipients: all}]",
        "listeners: [{name: a, protocol: imap4, bind: [':143'], routes: [{pool: a}], tls: {certificates: [{cert: a, key: b}]}}]",
        "directories: {a: {file: {path: a}}}\nlisteners: [{name: a, protocol: tcp, bind: [':1'], routes: [{pool: a}]}]",
        "listeners: [{name: a, protocol: gopher, bind: [':80'], routes: [{pool: a}]}]",
        "listeners: [{name: a, protocol: http, bind: [':80'], routes: [{pol: a}]}]",
        "listeners: [{name: a, protocol: http, bind: [':80'], routes: [{pool: a}], timeouts: {tunnel: 5}}]",
        "listeners: [{name: a, protocol: http, bind: [':80'], routes: [{pool: a}]}]\npools: {a: {}}",
        "listeners: [{name: a, protocol: http, bind: [':80'], routes: [{pool: a, match: {host: []}}]}]",
        "listeners: [{name: a, protocol: http, bind: [':80'], routes: [{redirect: {location: /, status: 200}}]}]",
    ],
)
def test_the_schema_refuses_what_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        load("x.yaml", text=text)
    assert not accepts(data(text), SCHEMA)


def test_every_key_has_a_meaning() -> None:
    def walk(node: Schema) -> None:
        for key, inner in node.get("properties", {}).items():
            assert inner.get("description") or deref(inner, SCHEMA).get("description"), key
        for each in node.get("anyOf", ()):
            walk(each)

    for node in [SCHEMA, *SCHEMA["$defs"].values()]:
        walk(node)


def test_the_schema_is_plain_json_with_defaults_as_they_are_written() -> None:
    text = json.dumps(SCHEMA)
    assert json.loads(text) == SCHEMA
    assert SCHEMA["$defs"]["Timeouts"]["properties"]["tunnel"]["default"] == "1h"
    assert SCHEMA["$defs"]["Limits"]["properties"]["body_bytes"]["default"] == "10GiB"
    assert SCHEMA["$defs"]["Outliers"]["properties"]["max_ejected"]["default"] == "50%"
    assert "x-unit" not in text
    assert '"word"' not in text


@pytest.mark.parametrize("section", TABLES)
def test_every_key_is_documented(section: str) -> None:
    missing = [row for row in TABLES[section].split("\n") if row not in DOCUMENT]
    assert TABLES[section] in DOCUMENT, f"docs/configuration.md lacks in {section or 'the node'}: " + "\n".join(missing)


def test_the_documentation_has_no_other_keys() -> None:
    documented = [row for row in DOCUMENT.split("\n") if row.startswith("| `") and row.count("|") == 5]
    known = {row for table in TABLES.values() for row in table.split("\n")}
    assert [row for row in documented if row not in known] == []


def test_every_field_of_the_access_log_is_documented() -> None:
    assert [name for name in FIELDS if f"`{name}`" not in DOCUMENT] == []


def test_every_table_of_mistakes_is_long() -> None:
    """The parametrised cases are where the keys are tried one by one: each key of the schema is in some of them."""
    whole = (NODE, HTTP, RULES, POOLS, SERVERS)
    cases = " ".join(str(case[0]) for table in whole for case in table).replace(MARK, "")
    cases += " ".join(case[1] for case in STREAMS)
    cases += " ".join(str(case[0]) for case in mail_cases()).replace(MARK, "")
    keys = {
        key
        for node in SCHEMA["$defs"].values()
        for each in (node, *node.get("anyOf", ()))
        for key in each.get("properties", ())
    }
    keys -= {"bind", "routes", "name", "protocol", "address"}  # of listeners and servers, which have tests of their own
    assert len(keys) > 60
    untried = {key for key in keys if key not in cases}
    assert untried <= {
        *("request_header", "request_body", "tunnel", "pipeline_bytes", "backlog", "response_header", "response_body"),
        *(
            "idle",
            "max_connections",
            "backup",
            "send_proxy",
            "connections",
            "fall",
            "socket",
            "servers",
            "tables",
            "client_hello_bytes",
            "half_closed",
        ),
    }


def test_the_documentations_example_and_its_errors() -> None:
    blocks = re.findall(r"(?:^    .*\n)+", DOCUMENT, re.MULTILINE)
    example, errors = (re.sub("^    ", "", block, flags=re.MULTILINE) for block in blocks[:2])
    assert load("web.yaml", text=example).warnings == []
    wrong = example.replace("{pool: web}", "{pool: wbe}").replace("/health}}", "/health}, timeout: 300}")
    with pytest.raises(ConfigurationError) as caught:
        load("web.yaml", text=wrong)
    assert str(caught.value) == errors.strip()


def test_limits_are_those_of_the_shared_counts() -> None:
    assert ROWS == counts.ROWS - 1
    assert WORKERS == counts.WORKERS
