# ruff: noqa: INP001, SLF001 - no module of ours: Python looks for it by its name, and what it breaks is private
"""Python runs this before the service: its memory is deaf to every change, and gives what it has.

By name, not by import: the lab knows the service by its contract alone, but for this one act of violence.
"""

from importlib import import_module

_cache = import_module("atelier.reads.cache.answers").AnswerCache
if not hasattr(_cache, "_drop"):
    raise SystemExit("the service's memory has no _drop to take out")
_cache._drop = lambda *_: None
