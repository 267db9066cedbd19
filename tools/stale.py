"""Tells whether something generated is out of date with what it was made from, without a network.

The lock files: made by `make lock` from the dependency tables of pyproject.toml, whose digest they carry in their first
line. Also refuses addresses in them: they hold names, versions and hashes only.
"""

import hashlib
import json
import re
import sys
import tomllib
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
LOCKS = ("requirements/service.txt", "requirements/load.txt", "requirements/dev.txt")


def digest_dependencies() -> str:
    """A digest of all that `make lock` resolves."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
    tables = [
        project["project"]["requires-python"],
        project["project"]["dependencies"],
        project["project"]["optional-dependencies"],
        project["dependency-groups"],
    ]
    return hashlib.sha256(json.dumps(tables).encode()).hexdigest()[:16]


def header() -> str:
    """The first line of a lock file that is up to date."""
    return f"# Locked from pyproject.toml {digest_dependencies()} by `make lock`."


def find_faults() -> list[str]:
    """What is wrong with the lock files, one line each."""
    faults = []
    for name in LOCKS:
        text = (TOP / name).read_text(encoding="utf-8")
        if not text.startswith(header() + "\n"):
            faults.append(f"{name} is stale: run `make lock`")
        if re.search(r"://|--(extra-)?index|--find-links", text):
            faults.append(f"{name} carries an address")
        pins = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
        faults += [f"{name}: not pinned by a hash: {pin}" for pin in pins if not pin.endswith("\\")]
    return faults


def stamp() -> None:
    """Writes the first line into lock files that were just made."""
    for name in LOCKS:
        path = TOP / name
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        body = [line for line in lines if not line.startswith("#")]
        path.write_text(header() + "\n" + "".join(body), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["stamp"]:
        stamp()
    elif found := find_faults():
        sys.exit("\n".join(found))
