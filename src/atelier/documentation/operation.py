"""One operation of the OpenAPI document: how it is noted down here, and the JSON that comes of it. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from atelier.problems import MEDIA_TYPE, TYPES

Json = dict[str, Any]

JSON_TYPE = "application/json"
# Whatever the address: the server takes a malformed head for a request, the framework refuses it.
_EVERYWHERE = ("invalid-request",)
REQUEST_ID = "X-Request-Id"


@dataclass(frozen=True, slots=True)
class Success:
    """What an operation answers when it works.

    Attributes:
        status: of the answer.
        about: one line.
        schema: of the body; None for no body.
        example: of the body.
        headers: names of `components.headers` that it carries.
        media_type: of the body.
        as_json: an example of the same as JSON, where the body comes in two forms.
        other_types: the other media types that a body may have, with an example of each.
    """

    status: int
    about: str
    schema: Json | None = None
    example: Any = None
    headers: tuple[str, ...] = ()
    media_type: str = JSON_TYPE
    as_json: Any = None
    other_types: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> Json:
        """As OpenAPI has it."""
        answer: Json = {"description": self.about, "headers": _headers(self.headers)}
        if self.schema is not None:
            content: Json = {"schema": self.schema}
            if self.example is not None:
                content["example"] = self.example
            answer["content"] = {self.media_type: content}
        if self.as_json is not None:
            answer["content"][JSON_TYPE] = {"schema": {}, "example": self.as_json}
        for media_type, example in self.other_types.items():
            answer["content"][media_type] = {"schema": {}, "example": example}
        return answer


@dataclass(frozen=True, slots=True)
class Body:
    """What a command takes: its media types, the schema, an example."""

    media_types: tuple[str, ...]
    schema: Json
    example: Any = None

    def document(self) -> Json:
        """As OpenAPI has it."""
        content: Json = {"schema": self.schema}
        if self.example is not None:
            content["example"] = self.example
        return {"required": True, "content": dict.fromkeys(self.media_types, content)}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address.

    Attributes:
        method: in capitals; a GET stands for its HEAD too.
        path: with `{name}` for parts.
        name: the operationId.
        tag: the group it is shown in.
        summary: one line.
        success: the answers that are no problem.
        parameters: names of `components.parameters`.
        problems: names of problems that it may answer.
        about: more than the summary; None when that says it all.
        scope: that the API key needs; empty for any key, None for no key.
        body: what it takes; None for nothing.
    """

    method: str
    path: str
    name: str
    tag: str
    summary: str
    success: tuple[Success, ...]
    parameters: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    about: str | None = None
    scope: str | None = None
    body: Body | None = None

    def document(self) -> Json:
        """As OpenAPI has it."""
        described: Json = {"operationId": self.name, "tags": [self.tag], "summary": self.summary}
        if self.about:
            described["description"] = self.about
        if self.parameters:
            described["parameters"] = [{"$ref": f"#/components/parameters/{name}"} for name in self.parameters]
        if self.body is not None:
            described["requestBody"] = self.body.document()
        if self.scope is not None:
            described["security"] = [{"apiKey": [self.scope] if self.scope else []}]
        refusals = {status: {"$ref": f"#/components/responses/{name}"} for status, name in self.refusals().items()}
        described["responses"] = {str(one.status): one.document() for one in self.success} | refusals
        return described

    def refusals(self) -> dict[str, str]:
        """The name in `components.responses` of its refusals, by status; several problems may share a status."""
        by_status: dict[int, list[str]] = {}
        for name in sorted({*self.problems, *_EVERYWHERE}):
            by_status.setdefault(TYPES[name].status, []).append(name)
        return {str(status): ".".join(by_status[status]) for status in sorted(by_status)}


def describe_refusal(names: list[str]) -> Json:
    """The answer that any of some problems of one status is."""
    headers = sorted({*_ON_REFUSALS, *(header for name in names for header in _PROBLEM_HEADERS.get(name, ()))})
    return {
        "description": "; ".join(f"`{name}`: {TYPES[name].title}" for name in names),
        "headers": _headers(headers),
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "examples": {name: {"value": example_of(name)} for name in names},
            }
        },
    }


# The token: of every answer to a command, and of what tells a client that its own is lost.
_ON_REFUSALS = ("Cache-Control", "Atelier-Token", "Set-Cookie")
# What an answer from the database carries, be it that there is nothing, and what the stored one of a command does.
_SEEN = ("Atelier-Token", "Set-Cookie", "Atelier-Served-By", "Atelier-Lag-Ms", "Server-Timing", "Vary")
_RATE = ("RateLimit", "RateLimit-Policy")
_STORED = ("Atelier-Token", "Set-Cookie", "Idempotency-Replayed", *_RATE)
# What a command may be told that is no outcome of it: it has counted against the rate all the same.
_OF_NO_OUTCOME = (
    "invalid-request", "idempotency-key-missing", "forbidden", "payload-too-large", "unsupported-media-type",
    "idempotency-conflict", "precondition-required",
)  # fmt: skip
_OF_NO_OUTCOME_YET = (
    "idempotency-in-flight", "too-many-requests", "overloaded", "primary-unavailable", "outcome-unknown",
)  # fmt: skip
_PROBLEM_HEADERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((name for name, kind in TYPES.items() if kind.status in (409, 412)), _STORED),
    **dict.fromkeys(_OF_NO_OUTCOME, _RATE),
    **dict.fromkeys(_OF_NO_OUTCOME_YET, ("Retry-After", *_RATE)),
    "no-replica": ("Retry-After",),
    "unauthorized": ("WWW-Authenticate",),
    "method-not-allowed": ("Allow",),
    "not-found": (*_SEEN, *_STORED),
}
_PROBLEM_MEMBERS: dict[str, Json] = {
    "invalid-request": {"field": "count"},
    "forbidden": {"scope": "inventory:write"},
    "insufficient-stock": {"lines": [{"line": 0, "sku_id": 37, "requested": 3, "available": 1}]},
    **{name: {"retry_after_s": 1} for name, headers in _PROBLEM_HEADERS.items() if "Retry-After" in headers},
}


def example_of(name: str) -> Json:
    """A problem document of one kind."""
    kind = TYPES[name]
    return {
        "type": f"/problems/{name}",
        "title": kind.title,
        "status": kind.status,
        "detail": "What is wrong with this request in particular.",
        "instance": "/the/path/that/was/asked/for",
        **_PROBLEM_MEMBERS.get(name, {}),
    }


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*names, REQUEST_ID)}
