"""The OpenAPI 3.1 document, whole: every operation of both sides, whatever the role of the process."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec

from atelier import __version__
from atelier.documentation.components import HEADERS, PARAMETERS, SCHEMAS
from atelier.documentation.operating import list_operating
from atelier.documentation.operation import Json, Operation, describe_refusal
from atelier.documentation.reading import list_reading
from atelier.documentation.writing import list_writing

_ABOUT = """Reads come from replicas, commands go to the primary. Every answer carries `Atelier-Token`; sent back, the
next answer contains everything that this one has seen. `HEAD` works wherever `GET` does. Errors are
`application/problem+json` (RFC 9457); `/problems/` explains each of them. An address answers any other method with
`405`, and names those it takes in `Allow`. A process that serves one side alone has none of the other's operations:
`405` where the address is one of both sides, else `404`; a proxy in front of the two keeps that from clients."""

_SCHEMES: Json = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key, with the scope that the command needs."}
}
_LICENCE = {"name": "MIT", "identifier": "MIT"}


def list_operations() -> tuple[Operation, ...]:
    """Every operation, reading first."""
    reading, writing = list_reading(), list_writing()[0]
    return (*_note_other_side(reading, writing), *_note_other_side(writing, reading), *list_operating())


def _note_other_side(operations: Sequence[Operation], others: Sequence[Operation]) -> Iterator[Operation]:
    """Notes where a process of the other side alone has the address, too, and does not take the method."""
    for operation in operations:
        if any(_covers(other.path, operation.path) for other in others):
            yield replace(operation, problems=(*operation.problems, "method-not-allowed"))
        else:
            yield operation


def _covers(template: str, path: str) -> bool:
    parts, others = template.split("/"), path.split("/")
    if len(parts) != len(others):
        return False
    return all(part.startswith("{") or part == other for part, other in zip(parts, others, strict=True))


def operations_of() -> list[tuple[str, str]]:
    """Every method with its path."""
    return [(operation.method, operation.path) for operation in list_operations()]


def build_document() -> Json:
    """The document as a value."""
    paths: Json = {}
    refusals: set[str] = set()
    for operation in list_operations():
        paths.setdefault(operation.path, {})[operation.method.lower()] = operation.document()
        refusals.update(operation.refusals().values())
    components = {
        "schemas": {**SCHEMAS, **list_writing()[1]},
        "parameters": PARAMETERS,
        "headers": HEADERS,
        "responses": {name: describe_refusal(name.split(".")) for name in sorted(refusals)},
        "securitySchemes": _SCHEMES,
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "atelier", "version": __version__, "description": _ABOUT, "license": _LICENCE},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    }


def write_document() -> bytes:
    """The document as JSON."""
    return msgspec.json.encode(build_document())
