"""The operations for those who run the service and those who program against it."""

from atelier.documentation import examples as x
from atelier.documentation.components import ref
from atelier.documentation.operation import Operation, Success
from atelier.documentation.pages import describe_problem
from atelier.telemetry import METRICS_MEDIA_TYPE

_STATUS = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
_TEXT = {"type": "string"}
# What looking a key up can end in.
_KEYED = ("unauthorized", "no-replica")
_PROMETHEUS = METRICS_MEDIA_TYPE.split(";")[0]
_TAGGED = ("ETag", "Cache-Control")


def _page(
    path: str, name: str, summary: str, media_type: str = "text/html", *parameters: str, as_json: object = None
) -> Operation:
    missing = ("not-found",) if parameters else ()
    headers = ("ETag", "Cache-Control", *(("Vary",) if as_json is not None else ()))
    answer = Success(200, summary, _TEXT, x.PAGE, headers, media_type, as_json)
    return Operation(
        "GET", path, name, "Documentation", summary, (answer, _unchanged(headers)),
        parameters=(*parameters, "If-None-Match"), problems=missing,
    )  # fmt: skip


def _unchanged(headers: tuple[str, ...]) -> Success:
    return Success(304, "It has not changed: no body.", headers=headers)


def _operate(
    path: str, name: str, summary: str, success: Success, problems: tuple[str, ...] = (), *, about: str | None = None
) -> Operation:
    return Operation("GET", path, name, "Operation", summary, (success,), problems=problems, about=about)


def list_operating() -> tuple[Operation, ...]:
    """Health, cluster, metrics, and the documentation itself."""
    keyed = "A setting makes it ask for an API key."
    return (
        _operate(
            "/health/live", "live", "Is the process up?",
            Success(200, "It is.", _STATUS, {"status": "up"}),
        ),
        _operate(
            "/health/ready", "ready", "Can it serve its role?",
            Success(200, "It can.", _STATUS, {"status": "ready"}), ("no-replica", "primary-unavailable", "overloaded"),
        ),
        _operate(
            "/cluster", "cluster", "Every database node, as this process sees it",
            Success(200, "The nodes.", ref("Cluster"), {"nodes": [x.NODE]}, ("Cache-Control",)), _KEYED, about=keyed,
        ),
        _operate(
            "/metrics", "metrics", "Metrics for Prometheus",
            Success(200, "The metrics of this process.", _TEXT, x.METRICS, ("Cache-Control",), _PROMETHEUS),
            _KEYED, about=keyed,
        ),
        Operation(
            "GET", "/openapi.json", "openapi", "Documentation", "This document",
            (Success(200, "OpenAPI 3.1.", {"type": "object"}, x.DOCUMENT, _TAGGED), _unchanged(_TAGGED)),
            parameters=("If-None-Match",),
        ),
        _page("/docs", "docs", "This document as a page to try things on"),
        Operation(
            "GET", "/docs/assets/{asset}", "docs_asset", "Documentation", "A file of that page",
            (Success(200, "The file.", _TEXT, x.ASSET, _TAGGED, "text/css", other_types=x.OTHER_ASSETS),
             _unchanged(_TAGGED)),
            parameters=("asset", "If-None-Match"), problems=("not-found",),
        ),
        _page("/problems/", "problems", "Every kind of problem", as_json=[describe_problem("not-found")]),
        _page(
            "/problems/{problem}", "problem", "One kind of problem, explained", "text/html", "problem",
            as_json=describe_problem("not-found"),
        ),
    )  # fmt: skip
