"""The log line of a command: what it was, what became of it, and how; no secret among it."""

import json
from typing import Any

import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.writes.policy import WritePolicy
from tests.commands.conftest import Shop, new_key
from tests.commands.writing import adjustment, make_order, open_writes, settings_of
from tests.support import Service, wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]


def line_of(service: Service, request_id: str) -> dict[str, Any]:
    """The one line of a request, once it is written."""
    lines: list[dict[str, Any]] = []

    def is_written() -> bool:
        lines[:] = [json.loads(line) for line in service.log.read_text().splitlines() if request_id in line]
        return bool(lines)

    wait_until(is_written, what="the line of the request")
    [line] = lines
    return line


async def test_line_of_a_command_tells_name_verdict_batch_and_attempts(shop: Shop, service: Service) -> None:
    """Done, done before, and refused with the reason, also where the refusal itself is a replay."""
    [sku_id] = await shop.stocked(1)
    done, refused = new_key(), new_key()
    told = []
    for key, delta in ((done, 1), (done, 1), (refused, -9), (refused, -9)):
        mark = new_key()
        await shop.adjust(sku_id, delta, Idempotency_Key=key, X_Request_Id=mark)
        told.append(line_of(service, mark))
    names = ("command", "verdict", "problem", "batch", "attempts", "status")
    assert [tuple(line.get(name) for name in names) for line in told] == [
        ("AdjustStock", "done", None, 1, 1, 200),
        ("AdjustStock", "replayed", None, 1, 1, 200),
        ("AdjustStock", "refused", "insufficient-stock", 1, 1, 409),
        ("AdjustStock", "replayed", "insufficient-stock", 1, 1, 409),
    ]
    text = service.log.read_text()
    assert not any(secret in text for secret in (done, refused, service.key))


async def test_line_of_a_mistake_tells_no_verdict(shop: Shop, service: Service) -> None:
    """Nothing was carried out, so there is nothing to tell but the problem."""
    mark = new_key()
    await shop.post("/inventory/adjustments", {"reason": "x", "lines": []}, X_Request_Id=mark)
    line = line_of(service, mark)
    assert (line["status"], line["problem"]) == (400, "invalid-request")
    assert not {"verdict", "batch", "attempts"} & line.keys()


async def test_notes_tell_how_many_were_carried_out_together(shop: Shop, cluster: EmbeddedCluster) -> None:
    """Twenty in one transaction, at the first attempt."""
    [sku_id] = await shop.stocked(0)
    orders = [make_order(adjustment((sku_id, 1))) for _ in range(20)]
    async with open_writes(settings_of(cluster), WritePolicy(lanes=1)) as service:
        await service.dispatcher.carry_out(orders)
    assert [order.notes for order in orders] == [{"batch": 20, "attempts": 1}] * 20
