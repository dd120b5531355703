"""What all tests share: property tests that find the same examples in every run, and Ctrl-C as it is at a terminal."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

settings.register_profile(
    "l7lb",
    deadline=None,  # a machine that is busy makes no test wrong
    derandomize=True,
    database=None,
    max_examples=int(os.environ.get("L7LB_FUZZ_SEEDS", "100")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("l7lb")

# A shell without job control has its background jobs ignore SIGINT, and so would every process that a test starts; those
# that see what Ctrl-C does would see nothing in such a run.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
