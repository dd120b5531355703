"""What all tests share: property tests that find the same examples in every run."""

from __future__ import annotations

import os

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
