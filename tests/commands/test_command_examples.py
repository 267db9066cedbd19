"""The page of wire examples, sent to a real service: every request, every answer."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.writes.endpoints import ENDPOINTS
from tests.commands.conftest import new_key
from tests.support import Service, make_key

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
PAIR = re.compile(r"```http\n(.*?)```\n```http\n(.*?)```", re.DOTALL)
NAME = re.compile(r"<(\w+)>")
# Stands before a name that has no quotation marks on the page: a whole number.
BARE = "number:"

Names = dict[str, str]


def split(block: str) -> tuple[str, dict[str, str], str]:
    """First line, headers and body of a block."""
    head, _, body = block.partition("\n\n")
    first, *lines = head.strip().split("\n")
    return first, dict(line.split(": ", 1) for line in lines), body.strip()


def fill(text: str, names: Names) -> str:
    """A text with every name replaced by its value."""
    return NAME.sub(lambda match: names[match[1]], text)


def learn(pattern: str, actual: str, names: Names) -> None:
    """Compares a text; a name that is met for the first time takes what stands in its place."""
    parts = NAME.split(pattern)
    regex = "".join(re.escape(part) if index % 2 == 0 else f"(?P<{part}>.+)" for index, part in enumerate(parts))
    match = re.fullmatch(regex, actual)
    assert match, (pattern, actual)
    for name, value in match.groupdict().items():
        assert names.setdefault(name, value) == value, (pattern, actual)


def compare(expected: Any, actual: Any, names: Names) -> None:
    """Compares a JSON value, and learns names in it."""
    if isinstance(expected, dict):
        assert len(expected) == len(actual), (expected, actual)
        for (expected_key, expected_value), (key, value) in zip(expected.items(), actual.items(), strict=True):
            learn(expected_key, key, names)
            compare(expected_value, value, names)
    elif isinstance(expected, list):
        assert len(expected) == len(actual), (expected, actual)
        for expected_part, part in zip(expected, actual, strict=True):
            compare(expected_part, part, names)
    elif isinstance(expected, str) and expected.startswith(BARE):
        assert type(actual) is int, (expected, actual)
        learn(expected.removeprefix(BARE), str(actual), names)
    elif isinstance(expected, str) and NAME.search(expected):
        assert isinstance(actual, str), (expected, actual)
        learn(expected, actual, names)
    else:
        assert expected == actual


async def test_every_example_of_the_page_is_true(service: Service, cluster: EmbeddedCluster) -> None:
    """In order, under a key owner of its own."""
    key, names = await make_key(cluster, name=new_key()), Names()
    pairs = PAIR.findall(PAGE.read_text(encoding="utf-8"))
    assert len(pairs) > 20
    async with httpx.AsyncClient(base_url=service.url, headers={"Authorization": f"Bearer {key}"}) as http:
        for request, answer in pairs:
            first, headers, body = split(fill(request, names))
            method, path = first.split(" ")
            headers = {"Content-Type": "application/json"} | headers
            actual = await http.request(method, path, headers=headers, content=body.encode())
            status, expected_headers, expected = split(answer)
            assert actual.status_code == int(status), (first, actual.text)
            assert "Atelier-Token" in actual.headers
            for name, value in expected_headers.items():
                learn(value, actual.headers[name], names)
            if expected:
                bare = re.sub(r'(?<!")(?<!\w)(?<!/)<(\w+)>(?!")(?= ?[,}\]])', rf'"{BARE}<\1>"', expected)
                compare(json.loads(bare), actual.json(), names)
            else:
                assert actual.content == b""


def test_page_shows_every_command_with_what_it_answers_when_it_works() -> None:
    """A refusal alone would leave the reader to guess."""
    pairs = PAIR.findall(PAGE.read_text(encoding="utf-8"))
    shown = {(re.sub(r"<\w+>", "{}", split(request)[0]), split(answer)[0]) for request, answer in pairs}
    assert {(f"{one.method} {re.sub(r'{.*?}', '{}', one.path)}", str(one.success)) for one in ENDPOINTS} <= shown
