"""Reads the state when all is over, reservations, stock, ledgers, products, for comparison with what was said."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from loadtest.answers import stock_line, version_of
from loadtest.client import STRONG
from loadtest.clock import Clock
from loadtest.history.record import Line, Op
from loadtest.recorder import Recorder
from loadtest.transport import Answer, PlainTransport, Request

_AT_ONCE = 8
_PAGE = 1000
_TRIES = 40
_WAIT_S = 0.25


class FinalStateError(Exception):
    """The final state could not be read: the service did not answer, or never came to rest."""


@dataclass(frozen=True, slots=True)
class Surveyor:
    """Reads facts from the primary, each until it is had.

    Attributes:
        url: of the service.
        api_key: any valid one.
        recorder: writes them down.
        clock: of the run.
    """

    url: str
    api_key: str
    recorder: Recorder
    clock: Clock

    def survey(self, *, reservations: Iterable[str], skus: Iterable[int], products: Iterable[int]) -> None:
        """Reads everything; reservations before stock, so that none that is gone counts as held.

        Raises:
            FinalStateError: the service does not answer.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for work, ids in ((self._reservation, reservations), (self._sku, skus), (self._product, products)):
                for _ in pool.map(work, ids):
                    pass

    def _reservation(self, reservation: str) -> None:
        answer = self._get(f"/reservations/{reservation}")
        told: dict[str, Any] = answer.json() if answer.is_ok else {"state": "gone", "lines": []}
        lines = tuple(Line(f"sku:{line['sku_id']}", held=line["quantity"]) for line in told["lines"])
        self._add("reservation", lines, reservation=reservation, state=told["state"])

    def _sku(self, sku_id: int) -> None:
        """Stock and ledger of one moment: the version is the same before and after."""
        for _ in range(_TRIES):
            before = stock_line(f"sku:{sku_id}", self._get(f"/inventory/{sku_id}"))
            movements = self._movements(sku_id)
            after = stock_line(f"sku:{sku_id}", self._get(f"/inventory/{sku_id}"))
            if before == after:
                self._add("stock", (after,))
                for told in movements:
                    line = Line(after.key, delta=told["delta"])
                    self._add(
                        "movement",
                        (line,),
                        command=told["command_key"],
                        state=told["kind"],
                        position=str(told["movement_id"]),
                    )
                return
            time.sleep(_WAIT_S)
        raise FinalStateError(f"SKU {sku_id} does not come to rest")

    def _movements(self, sku_id: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            after = f"&after={found[-1]['movement_id']}" if found else ""
            answer = self._get(f"/inventory/{sku_id}/movements?count={_PAGE}{after}")
            page = answer.json() if answer.is_ok else []
            found += page
            if len(page) < _PAGE:
                return found

    def _product(self, product_id: int) -> None:
        answer = self._get(f"/products/{product_id}")
        self._add("product", (Line(f"product:{product_id}", version_of(answer)),))

    def _get(self, path: str) -> Answer:
        headers = {"Authorization": f"Bearer {self.api_key}", "Atelier-Consistency": STRONG.header()}
        transport = PlainTransport(self.url)
        try:
            for _ in range(_TRIES):
                answer = transport.send(Request("GET", path, path, headers))
                if answer.is_ok or answer.status == 404:
                    return answer
                time.sleep(_WAIT_S)
        finally:
            transport.close()
        raise FinalStateError(f"GET {path}: {answer.status or answer.error}")

    def _add(self, kind: str, lines: tuple[Line, ...], **more: Any) -> None:
        now_s = self.clock()
        op = Op(0, "-", kind, now_s, now_s, lines=lines)
        self.recorder.add(op._replace(**more), timed=False)


def is_answering(url: str) -> bool:
    """Whether the service says that it is ready."""
    transport = PlainTransport(url, timeout_s=2)
    try:
        return transport.send(Request("GET", "/health/ready", "/health/ready", {})).is_ok
    finally:
        transport.close()
