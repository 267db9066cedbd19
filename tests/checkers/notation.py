"""Histories in one line, for people: `ann adjusts x -1 v2; bob reads x v1`.

Requests are separated by `;`. Each is a session, a verb, a key, and what is told of it:

    reads  adjusts  counts  reserves  confirms  releases  updates  creates      what clients do
    opens  hears  closes                                                        what a watcher of the feed gets
    ledger  finally                                                             what is read at the end (session `-`)

    x  y            a SKU; a name that begins with p is a product; `and` begins the next line of a request
    v3              the version seen or made (v0: not found)        =9/2    9 on hand, 2 reserved
    +5  -1          what it adds to on_hand                         held:2  what it adds to reserved
    as k1           the idempotency key                             r:7     the reservation
    ?  !            outcome unknown, refused                        again   a repeated answer
    strong  eventual  bounded:100                                   the consistency of a read; else causal
    lag:5  on pg2                                                   what its answer says
    @1-2.5          from when to when; else each request has a second of its own and takes half of it
    pending  confirmed  initial  sale ...                           a state
"""

import re

from loadtest.history.record import Line, Op
from loadtest.history.store import MemoryHistory

VERBS = {
    "reads": "read",
    "adjusts": "adjust",
    "counts": "count",
    "reserves": "reserve",
    "confirms": "confirm",
    "releases": "release",
    "updates": "update",
    "creates": "create",
    "opens": "event",
    "hears": "event",
    "closes": "event",
    "ledger": "movement",
    "finally": "stock",
}
STATES = {"opens": "open", "closes": "closed"}
WORDS = re.compile(
    r"v(?P<version>\d+)|=(?P<on_hand>-?\d+)/(?P<reserved>-?\d+)|(?P<delta>[+-]\d+)|held:(?P<held>-?\d+)|r:(?P<reservation>\w+)"
    r"|ttl:(?P<ttl>\d+)|@(?P<start>[\d.]+)-(?P<end>[\d.]+)|bounded:(?P<bound>\d+)|lag:(?P<lag>\d+)|(?P<word>[?!\w:]+)"
)


def history(text: str) -> MemoryHistory:
    """A history from its notation."""
    return MemoryHistory(ops(text))


def ops(text: str) -> list[Op]:
    """The operations of a notation."""
    requests = [request.split() for request in text.split(";") if request.strip()]
    return [_read_request(n, words) for n, words in enumerate(requests, 1)]


def _read_request(n: int, words: list[str]) -> Op:
    session, verb, *rest = words
    fields: dict[str, object] = {"state": STATES.get(verb)}
    lines: list[Line] = []
    kind = VERBS[verb]
    if kind == "read":
        fields |= {"mode": "causal", "tokened": True}
    rest = list(rest)
    while rest:
        word = rest.pop(0)
        match = WORDS.fullmatch(word)
        assert match, word
        if word in ("as", "on"):
            fields["command" if word == "as" else "node"] = rest.pop(0)
        elif not _read_line_word(match, lines):
            _read_word(match, fields, lines)
    if kind == "movement":
        fields["position"] = str(n)
    if kind == "stock" and lines and lines[0].key.startswith("product:"):
        kind = "product"
    if kind == "stock" and "reservation" in fields:
        kind = "reservation"
    times = {"invoked_s": float(n), "completed_s": n + 0.5} | {
        k: fields.pop(k) for k in ("invoked_s", "completed_s") if k in fields
    }
    return Op(n=n, session=session, op=kind, lines=tuple(lines), **times, **fields)


def _read_line_word(match: re.Match[str], lines: list[Line]) -> bool:
    if match["version"]:
        lines[-1] = lines[-1]._replace(version=int(match["version"]))
    elif match["on_hand"]:
        lines[-1] = lines[-1]._replace(on_hand=int(match["on_hand"]), reserved=int(match["reserved"]))
    elif match["delta"]:
        lines[-1] = lines[-1]._replace(delta=int(match["delta"]))
    elif match["held"]:
        lines[-1] = lines[-1]._replace(held=int(match["held"]))
    else:
        return False
    return True


def _read_word(match: re.Match[str], fields: dict[str, object], lines: list[Line]) -> None:
    outcomes = {"?": "info", "!": "refused"}
    if match["reservation"]:
        fields["reservation"] = match["reservation"]
    elif match["ttl"]:
        fields["ttl_s"] = float(match["ttl"])
    elif match["start"]:
        fields |= {"invoked_s": float(match["start"]), "completed_s": float(match["end"])}
    elif match["bound"]:
        fields |= {"mode": "bounded", "max_lag_ms": float(match["bound"]), "lag_ms": fields.get("lag_ms", 0.0)}
    elif match["lag"]:
        fields["lag_ms"] = float(match["lag"])
    elif (word := match["word"]) in outcomes:
        fields["outcome"] = outcomes[word]
    elif word == "again":
        fields["replayed"] = True
    elif word in ("strong", "eventual"):
        fields |= {"mode": word, "tokened": word == "strong"}
    elif word in ("pending", "confirmed", "released", "expired", "initial", "import", "adjustment", "sale", "count"):
        fields["state"] = word
    elif word == "unknown":
        fields["lag_ms"] = None
    elif word != "and":
        lines.append(Line(("product:" if word.startswith("p") else "sku:") + word))
