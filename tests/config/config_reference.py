"""The tables of docs/configuration.md, made from the JSON schema.

``python tests/config/config_reference.py`` prints them.
"""

from __future__ import annotations

from typing import Any

from l7lb.config import json_schema

Schema = dict[str, Any]
UNITS = {"/(s|m|h|d)$": "rate", "(ms|s|m|h|d)$": "time", "TiB)$": "size", "%$": "percentage"}


def deref(node: Schema, root: Schema) -> Schema:
    """The node that a reference stands for."""
    while "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def alternatives(node: Schema, root: Schema) -> list[Schema]:
    """A node's alternatives without null."""
    node = deref(node, root)
    if "anyOf" not in node:
        return [node] if node.get("type") != "null" else []
    return [found for each in node["anyOf"] for found in alternatives(each, root)]


def kind(node: Schema, root: Schema) -> str:
    """A value's kind in words."""
    found = alternatives(node, root)
    single = " or ".join(dict.fromkeys(simple_kind(each, root) for each in found if each.get("type") != "array"))
    lists = [simple_kind(each, root) for each in found if each.get("type") == "array"]
    if single and lists == [f"list of {single}"]:
        return f"{single}, or a list"
    return " or ".join(filter(None, [single, *lists]))


def simple_kind(node: Schema, root: Schema) -> str:
    if "anyOf" in node:
        return kind(node, root)
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{word}`" for word in node["enum"])
    match node.get("type"):
        case "boolean":
            return "true or false"
        case "integer" | "number":
            return f"{node.get('minimum', 0):.12g} to {node['maximum']:.12g}" if "maximum" in node else "number"
        case "array":
            return f"list of {kind(node['items'], root)}"
        case "object":
            return "mapping"
    return next((unit for end, unit in UNITS.items() if node.get("pattern", "").endswith(end)), "text")


def default(node: Schema, required: bool) -> str:
    if required:
        return "required"
    value = node.get("default")
    if value is None or value in ([], {}, ""):
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"`{value}`" if not isinstance(value, list) else f"`[{', '.join(map(str, value))}]`"


def rows(section: Schema, root: Schema) -> list[str]:
    """The table of one section."""
    lines = ["| Key | Meaning | Value | Default |", "|---|---|---|---|"]
    for key, node in section["properties"].items():
        meaning = (node.get("description") or deref(node, root).get("description", "")).replace("|", "\\|")
        required = key in section.get("required", ())
        lines.append(f"| `{key}` | {meaning} | {kind(node, root)} | {default(node, required)} |")
    return lines


def sections() -> dict[str, str]:
    """Each section's path and its table. A section that comes twice is listed where it comes first."""
    root = json_schema()
    tables: dict[str, str] = {}
    seen: set[int] = set()

    def walk(path: str, node: Schema) -> None:
        for each in alternatives(node, root):
            if each.get("type") == "array":
                walk(f"{path}[]", each["items"])
            elif "properties" in each and id(each) not in seen:
                seen.add(id(each))
                if each["properties"]:
                    protocol = deref(each["properties"].get("protocol", {}), root).get("const")
                    if protocol:  # the listeners of each protocol have keys of their own
                        path = f"{path.partition(' ')[0]} {protocol}"
                    tables[path] = "\n".join(rows(each, root))
                for key, inner in each["properties"].items():
                    walk(f"{path}.{key}" if path else key, inner)
            elif isinstance(each.get("additionalProperties"), dict):
                walk(f"{path}.NAME", each["additionalProperties"])

    walk("", root)
    return tables


if __name__ == "__main__":
    for title, table in sections().items():
        print(f"### `{title}`\n\n{table}\n")
