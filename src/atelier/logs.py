"""How the log looks: one line an event on standard error, JSON outside a terminal."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

# A line waits this long for company, or until there are so many: a write for every request, between which other
# threads get at the interpreter, costs as much as a fifth of a read.
_GATHER_S = 0.1
_GATHER_LINES = 256

_encoder = msgspec.json.Encoder(enc_hook=repr)


def configure_logging(*, level: str = "info", on_terminal: bool) -> None:
    """Sets structlog up for the process: one line an event, on standard error, written at once.

    Args:
        level: the least important level that is written.
        on_terminal: write for a person instead of JSON.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if on_terminal:
        shared.append(structlog.dev.ConsoleRenderer())
        factory: Any = structlog.PrintLoggerFactory(sys.stderr)
    else:
        shared += [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(serializer=_encode)]
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )


class RequestLog:
    """The log of requests. Its owner calls `flush` at the end; a process that is killed loses the last tenth second."""

    def __init__(self, *, level: str, on_terminal: bool, write: Callable[[bytes], object] | None = None) -> None:
        """Makes the log.

        Args:
            level: the least important level that is written; a request is `info`.
            on_terminal: write for a person, each line at once.
            write: takes the bytes of whole lines; None for standard error.
        """
        self._lines: list[dict[str, Any]] = []
        self._write = write or _write_to_stderr
        if on_terminal:
            self.tell: Callable[..., object] = structlog.get_logger("atelier.request").info
        elif logging.getLevelNamesMapping()[level.upper()] > logging.INFO:
            self.tell = _tell_nothing
        else:
            # The same lines as structlog's, without its steps: they cost as much as finding an answer in memory.
            self.tell = self._gather

    def flush(self) -> None:
        """Writes what has been gathered; a log that nobody takes is no reason to fail."""
        lines, self._lines = self._lines, []
        if lines:
            with contextlib.suppress(OSError, ValueError):
                self._write(_encoder.encode_lines(lines))

    def _gather(self, event: str, **fields: object) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_later(_GATHER_S, self.flush)
        fields["event"] = event
        fields["level"] = "info"
        fields["timestamp"] = datetime.now(UTC)
        self._lines.append(fields)
        if len(self._lines) >= _GATHER_LINES:
            self.flush()


def _tell_nothing(_event: str, **_fields: object) -> None:
    """Requests are not important enough for this log."""


def _write_to_stderr(lines: bytes) -> None:
    sys.stderr.buffer.write(lines)
    sys.stderr.buffer.flush()


def _encode(event: Any, **_: Any) -> bytes:
    return _encoder.encode(event)
