"""Requests that a server of HTTP/2 refused unseen."""

from __future__ import annotations

import pytest
from http_bench import Bench
from hyperframe.frame import GoAwayFrame, RstStreamFrame, SettingsFrame

from l7lb.core.snapshot import Retries

REFUSAL = SettingsFrame(0).serialize() + RstStreamFrame(1, error_code=7).serialize()
FAILED = SettingsFrame(0).serialize() + RstStreamFrame(1, error_code=2).serialize()
AWAY = SettingsFrame(0).serialize() + GoAwayFrame(0, last_stream_id=0).serialize()
ONE_MORE = Retries(attempts=1)
UPLOAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"


@pytest.mark.parametrize("answer", [REFUSAL, AWAY])
def test_what_a_server_did_not_look_at_is_sent_again_whatever_the_method(answer: bytes) -> None:
    bench = Bench(retries=ONE_MORE, http_version="2").client(UPLOAD).connect().answer(answer)
    assert bench.need is not None
    assert bench.need.again is not None
    bench.connect().answer(answer)
    assert bench.need is None  # once, as the pool says
    assert b" 502 " in bench.to_client


@pytest.mark.parametrize(("answer", "retries"), [(FAILED, ONE_MORE), (REFUSAL, Retries(attempts=0))])
def test_what_a_server_may_have_looked_at_is_not_sent_again(answer: bytes, retries: Retries) -> None:
    bench = Bench(retries=retries, http_version="2").client(UPLOAD).connect().answer(answer)
    assert bench.need is None
    assert b" 502 " in bench.to_client
