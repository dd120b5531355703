"""Routing: which rule a request matches, and which of a pool's servers it goes to."""

from __future__ import annotations

from l7lb.routing.router import Router
from l7lb.routing.templates import compile_template, expand

__all__ = ["Router", "compile_template", "expand"]
