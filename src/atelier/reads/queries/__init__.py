"""The statements of the reading side: one `.sql` file a resource, named blocks, both dialects.

Every statement takes an array of ids as `$1` and gives one row an id, in any order, so that concurrent requests for
one resource can share one statement. Every row also carries where the node stands (`POSITION`), evaluated in the
statement itself: after its snapshot was taken, so nothing that the answer shows lies beyond it.

A file is a sequence of blocks, each under a line `-- name: x` (a statement) or `-- fragment: x` (a text that the
statements of the same file take in by `{x}`).
"""

import re
from dataclasses import dataclass
from importlib.resources import files

from atelier.reads.position import POSITION

_BLOCK = re.compile(r"^-- (name|fragment): (\w+)\n(.*?)(?=^-- (?:name|fragment): |\Z)", re.MULTILINE | re.DOTALL)
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Statement:
    """One named statement.

    Attributes:
        name: its name in the file, unique over all files.
        sql: the text, with `POSITION` and the fragments put in.
    """

    name: str
    sql: str


def load_statements() -> dict[str, Statement]:
    """Reads all statements of the package, by name."""
    found: dict[str, Statement] = {}
    for file in sorted(files(__name__).iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".sql"):
            found.update(parse_statements(file.read_text(encoding="utf-8")))
    return found


def parse_statements(text: str) -> dict[str, Statement]:
    """Reads the statements of one file.

    Raises:
        KeyError: a statement takes in a fragment that the file does not have.
    """
    blocks = [(kind, name, body.strip()) for kind, name, body in _BLOCK.findall(text)]
    parts = {"position": POSITION.strip()}
    for _, name, body in (block for block in blocks if block[0] == "fragment"):
        parts[name] = _fill(body, parts)
    return {name: Statement(name, _fill(body, parts)) for kind, name, body in blocks if kind == "name"}


def _fill(text: str, parts: dict[str, str]) -> str:
    return _PLACE.sub(lambda place: parts[place[1]], text)
