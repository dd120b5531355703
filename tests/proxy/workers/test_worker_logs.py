"""One format for the lines of all processes."""

from __future__ import annotations

import json
import logging
import os

from l7lb.proxy.workers import logs

NOW = 1_700_000_000.5


def test_text_is_one_line_that_can_be_read() -> None:
    line = logs.render("text", "worker 1", "info", "it works", {"bind": "unix:/x", "why": 'a "b" c', "none": ""}, NOW)
    assert line == (
        f'2023-11-14T22:13:20.500Z info    worker 1[{os.getpid()}] it works bind=unix:/x why="a \\"b\\" c" none=""'
    )


def test_a_newline_makes_no_second_line() -> None:
    assert "\n" not in logs.render("text", "x", "info", "event", {"field": "one\ntwo"}, NOW)


def test_json_has_the_same_in_fields() -> None:
    line = json.loads(logs.render("json", "keeper", "error", "it fails", {"pid_of": 1, "path": os}, NOW))
    assert line["time"] == "2023-11-14T22:13:20.500Z"
    assert (line["level"], line["process"], line["pid"], line["event"]) == ("error", "keeper", os.getpid(), "it fails")
    assert line["pid_of"] == 1


def test_a_traceback_is_kept() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("l7lb.x", logging.ERROR, "", 0, "a %s", ("fault",), __import__("sys").exc_info())
    text = logs.Formatter("text", "worker").format(record)
    assert "a fault\nTraceback" in text
    assert text.endswith("ValueError: why")
    assert json.loads(logs.Formatter("json", "worker").format(record))["exception"].endswith("ValueError: why")
