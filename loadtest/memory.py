"""How much of a run the service has answered from memory, by its own count: a claim that no answer's body shows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from loadtest.checkers.verdict import State, Verdict
from loadtest.transport import PlainTransport, Request

_COUNTED = re.compile(r"^atelier_cache_(hits|misses)_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Recall:
    """What processes of the service have looked up in their memory.

    Attributes:
        hits: answers from memory.
        looks: how often it was asked.
        is_on: it is known to be switched on; else that shows in the looks alone.
    """

    hits: int = 0
    looks: int = 0
    is_on: bool = False

    @property
    def state(self) -> str:
        """`shown`, `not shown`, or `off`."""
        if self.hits:
            return "shown"
        return "not shown" if self.looks or self.is_on else "off"

    def document(self) -> dict[str, object]:
        """For `summary.json`."""
        return {"state": self.state, "hits": self.hits, "looks": self.looks}


def read_recall(url: str) -> Recall | None:
    """What a process has counted since it began; None where its metrics are not to be had."""
    transport = PlainTransport(url, timeout_s=3)
    try:
        answer = transport.send(Request("GET", "/metrics", "/metrics", {}))
    finally:
        transport.close()
    return parse_recall(answer.body.decode()) if answer.is_ok else None


def parse_recall(metrics: str) -> Recall:
    """The same, from the text of the metrics."""
    counts = {"hits": 0, "misses": 0}
    for name, value in _COUNTED.findall(metrics):
        counts[name] += int(float(value))
    return Recall(counts["hits"], counts["hits"] + counts["misses"])


def sum_recall(
    before: Mapping[str, Recall | None], after: Mapping[str, Recall | None], *, is_on: bool
) -> Recall | None:
    """What all processes have counted during a run; None where one of them does not tell.

    Args:
        before: by address, when it began; who is missing was started later.
        after: by address, when it was over.
        is_on: whether their memory is known to be switched on.
    """
    hits = looks = 0
    for url, now in after.items():
        if now is None:
            return None
        then = before.get(url) or Recall()
        # Who counts less than before was started anew meanwhile.
        if now.looks < then.looks:
            then = Recall()
        hits, looks = hits + now.hits - then.hits, looks + now.looks - then.looks
    return Recall(hits, looks, is_on)


def judge_memory(recall: Recall | None) -> list[Verdict]:
    """The verdict on the claim that memory answers; none while it is switched off."""
    name = "answers from memory"
    if recall is None:
        return [Verdict(name, State.UNKNOWN, 0, "the service does not show its metrics")]
    if recall.state == "off":
        return []
    if recall.state == "not shown":
        return [Verdict(name, State.UNKNOWN, recall.looks, f"not shown: asked {recall.looks} times, it had nothing")]
    return [Verdict(name, State.VALID, recall.hits)]
