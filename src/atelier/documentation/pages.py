"""The pages for people: the docs page around Swagger UI's own files, and one page for every kind of problem. Pure.

Nothing on them comes from elsewhere, and nothing stands inline that the policy would have to make an exception for.
"""

from functools import cache
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable

import swagger_ui_bundle

from atelier.problems import TYPES

# Swagger UI sets styles from its script, which is what 'unsafe-inline' is for; its icons are data: addresses.
DOCS_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_POLICY = b"default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".png": "image/png"}
_OF_SWAGGER = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")

_DOCS = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>atelier</title>
<link rel="icon" href="/docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<div id="documentation"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/assets/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#documentation",
  deepLinking: true,
  validatorUrl: null,
});
"""
_STYLE = """body { font: 1rem/1.6 system-ui, sans-serif; color: #222; }
body { max-width: 44rem; margin: 3rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.3; }
code { background: #f2f2f2; padding: 0.1em 0.3em; border-radius: 3px; }
td { padding: 0.25rem 1.25rem 0.25rem 0; vertical-align: top; }
a { color: #0b5394; }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="/docs/assets/page.css">
</head>
<body>
{body}
</body>
</html>
"""


def docs_page() -> str:
    """The page to try the service on."""
    return _DOCS


@cache
def read_asset(name: str) -> tuple[bytes, str] | None:
    """A file of the pages with its media type; None when they have no such file."""
    own = {"start.js": _START, "page.css": _STYLE}
    media_type = _MEDIA_TYPES.get(name[name.rfind(".") :], "")
    if name in own:
        return own[name].encode(), media_type
    if name in _OF_SWAGGER:
        return _swagger_folder().joinpath(name).read_bytes(), media_type
    return None


def problem_page(name: str) -> str:
    """The page of one kind of problem."""
    kind = TYPES[name]
    return _PAGE.format(
        title=escape(f"{kind.title} ({name})"),
        body=f"<p><a href='/problems/'>All problems</a></p>\n<h1>{escape(kind.title)}</h1>\n"
        f"<p><code>{escape(name)}</code>, status {kind.status}</p>\n<p>{_mark_code(kind.advice)}</p>",
    )


def problems_page() -> str:
    """The page of all kinds."""
    rows = "\n".join(
        f"<tr><td>{kind.status}</td><td><a href='/problems/{name}'>{name}</a></td><td>{escape(kind.title)}</td></tr>"
        for name, kind in TYPES.items()
    )
    return _PAGE.format(title="Problems", body=f"<h1>Problems</h1>\n<table>\n{rows}\n</table>")


def describe_problem(name: str) -> dict[str, object]:
    """One kind of problem for a program."""
    kind = TYPES[name]
    return {"type": f"/problems/{name}", "title": kind.title, "status": kind.status, "advice": kind.advice}


def _mark_code(text: str) -> str:
    """Makes `this` code; everything else is text."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts))


def _swagger_folder() -> Traversable:
    """The bundle names its folder by a version, which is none of our business."""
    return files(swagger_ui_bundle).joinpath("vendor").joinpath(swagger_ui_bundle.swagger_ui_path.name)
