"""The lines of requests: gathered, written whole, in time, and at the end."""

import asyncio
import json

import pytest

from atelier.logs import RequestLog

pytestmark = pytest.mark.anyio


class Written:
    """What came out, a write at a time."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def __call__(self, lines: bytes) -> None:
        self.writes.append(lines)

    def lines(self) -> list[dict[str, object]]:
        """All lines, read."""
        return [json.loads(line) for line in b"".join(self.writes).splitlines()]


def open_log(written: Written, level: str = "info") -> RequestLog:
    """A log that is no terminal's."""
    return RequestLog(level=level, on_terminal=False, write=written)


async def test_lines_are_written_together_and_without_another_word() -> None:
    """A tenth of a second later, whole, in order, with level and time."""
    written = Written()
    log = open_log(written)
    for number in range(3):
        log.tell("request", number=number, path="/a\nb")
    assert written.writes == []
    async with asyncio.timeout(5):
        while not written.writes:
            await asyncio.sleep(0.01)
    assert len(written.writes) == 1
    assert [line["number"] for line in written.lines()] == [0, 1, 2]
    assert {(line["event"], line["level"], line["path"]) for line in written.lines()} == {("request", "info", "/a\nb")}
    assert all(str(line["timestamp"]).endswith("Z") for line in written.lines())


async def test_much_is_written_at_once() -> None:
    """What is gathered has a bound."""
    written = Written()
    log = open_log(written)
    for _ in range(300):
        log.tell("request", path="x" * 200)
    assert written.writes
    log.flush()
    assert len(written.lines()) == 300


async def test_end_writes_what_is_left_and_nobody_to_take_it_is_no_failure() -> None:
    """The owner flushes; a closed standard error must not take a request with it."""
    written = Written()
    log = open_log(written)
    log.tell("request")
    log.flush()
    log.flush()
    assert len(written.writes) == 1

    def refuse(_lines: bytes) -> None:
        raise BrokenPipeError

    broken = RequestLog(level="info", on_terminal=False, write=refuse)
    broken.tell("request")
    broken.flush()


async def test_level_above_info_writes_no_request() -> None:
    """`ATELIER_LOG_LEVEL=warning`."""
    written = Written()
    log = open_log(written, "warning")
    log.tell("request")
    log.flush()
    assert written.writes == []
