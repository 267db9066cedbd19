"""Which addresses there are, as the documentation names them, and what is no address at all. Pure."""

import re
from collections.abc import Iterable

LONGEST_PATH_BYTES = 2_048

# The router behind this takes `//products//1` and `/products/1/` for `/products/1`, and the server decodes `%2F`
# before anybody could tell it from a slash. One thing has one address here.
_INEXACT = re.compile(rb"//|%2f|%5c|\\", re.IGNORECASE)


def is_exact(raw_path: bytes, *, with_slash: frozenset[bytes] = frozenset()) -> bool:
    """Whether a path, as it came over the wire, can be the address of anything.

    Args:
        raw_path: not decoded, without the query.
        with_slash: the addresses that do end with a slash.
    """
    if len(raw_path) > LONGEST_PATH_BYTES or not raw_path.startswith(b"/"):
        return False
    if raw_path.endswith(b"/") and len(raw_path) > 1 and raw_path not in with_slash:
        return False
    return _INEXACT.search(raw_path) is None


class Surface:
    """All addresses of the service with their methods, the same in every role."""

    def __init__(self, operations: Iterable[tuple[str, str]]) -> None:
        """Takes (method, path template) pairs; a template has `{name}` for a part that is not empty."""
        methods: dict[str, set[str]] = {}
        for method, template in operations:
            methods.setdefault(template, {"OPTIONS"}).update({"GET", "HEAD"} if method == "GET" else {method})
        self._places = [
            (re.compile("".join(_to_pattern(part) for part in re.split(r"(\{\w+\})", template))), sorted(names))
            for template, names in methods.items()
        ]

    def methods_of(self, path: str) -> list[str]:
        """The methods that an address takes, in alphabetical order; empty when there is no such address."""
        found = {name for pattern, names in self._places if pattern.fullmatch(path) for name in names}
        return sorted(found)


def _to_pattern(part: str) -> str:
    return "[^/]+" if part.startswith("{") else re.escape(part)
