"""Breaks a promise inside the service: in a process of it that the run starts for that, and nobody else has."""

import os
from collections.abc import Mapping
from pathlib import Path

_CACHE_BYTES = str(64 * 1024 * 1024)

IN_SERVICE: Mapping[str, Path] = {"deaf-memory": Path(__file__).with_name("deaf_memory")}
"""Every sabotage of this kind, and the folder whose `sitecustomize.py` does it."""


def settings_for(name: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables with which a process of the service breaks this promise; with a memory, whatever others have.

    Args:
        name: of the sabotage.
        environ: what the process would see otherwise.
    """
    path = os.pathsep.join(filter(None, (str(IN_SERVICE[name].resolve()), environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "ATELIER_CACHE_BYTES": _CACHE_BYTES}
