"""Persistence: what keeps a user on one server. Tables and the keys of a pool; ``link`` and ``state`` share them."""

from l7lb.persistence.stickiness import make_stickiness
from l7lb.persistence.tables import Tables

__all__ = ["Tables", "make_stickiness"]
