"""The configuration: models, the loader, the JSON schema, and what it compiles to.

:func:`load` reads a file and gives a :class:`Loaded`, or raises ConfigurationError with every problem by its file,
line and column. Only the supervisor and the commands import this package: it needs pydantic and ruamel.yaml, which
workers do without.
"""

from l7lb.config.loader import load
from l7lb.config.schema import json_schema
from l7lb.config.settings import Loaded, MoveHook, NodeSettings

__all__ = ["load", "json_schema", "Loaded", "MoveHook", "NodeSettings"]
