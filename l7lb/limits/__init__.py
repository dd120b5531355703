"""Rate limits: how often a source, a header's value, a host ... may come, over all workers of the node."""

from l7lb.limits.gate import Gate
from l7lb.limits.registry import Limits

__all__ = ["Gate", "Limits"]
