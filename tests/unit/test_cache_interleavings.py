"""Whatever the order of fills, changes, looks at the feed, restarts and failovers: no answer is staler than it claims.

The cache and what feeds it are the real ones; only the nodes are `tests/fixtures/replicas.py`, so that each step
stands alone and Hypothesis may put them into any order.
"""

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atelier.deadline import Deadline
from atelier.errors import NodeError
from atelier.reads.cache import follow
from atelier.reads.cache.answers import AnswerCache
from atelier.reads.cache.entries import Entry, Key
from atelier.reads.cache.flights import Flight
from atelier.reads.cache.source import Source
from atelier.reads.document import Document
from atelier.reads.executor import Answer, Ask
from atelier.reads.position import PositionMovedError, check_start
from atelier.reads.router import Policy
from atelier.token import CausalToken
from atelier.topology.state import NodeState
from tests.fixtures.replicas import STEP, SYSTEM, Commit, World, lsn_of, touches

KEYS: tuple[Key, ...] = (("styles_documented", 1), ("product_documented", 1), ("list_live", 0, 5))
LIMIT = 2
BOUNDS = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), database=None)
# How often each step is taken, relative to the others.
CALM = {
    "commit": 4, "replay": 3, "catch_up": 4, "observe": 2, "begin_look": 2, "end_look": 3, "fill": 4, "begin_fill": 4,
    "take_snapshot": 4, "end_fill": 3, "ask": 8, "take_token": 1, "pass_time": 1,
}  # fmt: skip
TROUBLED = {**CALM, "restart": 1, "fail_over": 1, "learn": 1, "write_behind_the_fork": 1, "rejoin": 1}


def orders(weights: dict[str, int]) -> st.SearchStrategy[list[tuple[str, int]]]:
    """Sequences of steps, each with a number that its details follow from."""
    names = [name for name, weight in weights.items() for _ in range(weight)]
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 2**16)), min_size=60, max_size=120)


@dataclass
class Fill:
    """A read on its way to a node and back."""

    node: NodeState
    key: Key
    sent: "asyncio.Future[None]"
    came: "asyncio.Future[None]"
    task: "asyncio.Task[Document]" = field(init=False)


@dataclass
class Looking:
    """A look at a feed on its way."""

    source: Source
    row: dict[str, Any]
    heard_at_s: float


def last_touching(commits: list[Commit], key: Key) -> int:
    """The number of commits up to the last one that touches what a key shows; 0 for none."""
    name, asked_id, *_ = key
    for place in range(len(commits), 0, -1):
        commit = commits[place - 1]
        if name.startswith("list"):
            if commit.topic in ("product", "catalogue"):
                return place
        elif touches(commit, asked_id, stock=name.startswith("styles")):
            return place
    return 0


class Interleavings:
    """The cache over a world; every method without an underscore that takes dice is a step."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.cache = AnswerCache(
            100_000,
            look=lambda: self.world.snapshot,
            as_of_s=self.world.lag.as_of_s,
            clock=lambda: self.world.now_s,
        )
        self.reached: dict[str, CausalToken | None] = {}
        self.looking: dict[str, Looking] = {}
        self.fills: list[Fill] = []
        self.token: CausalToken | None = None
        self.hits = 0

    def run(self, order: list[tuple[str, int]]) -> int:
        """Takes the steps, and checks every entry after each; returns how many reads memory has answered."""
        try:
            for _ in range(2):
                self._catch_up("a")
                self._catch_up("b")
            for name, number in order:
                getattr(self, name)(random.Random(number))
                self._check_entries()
        finally:
            for fill in self.fills:
                fill.task.cancel()
            self._run()
            self.loop.close()
        return self.hits

    # The world

    def commit(self, dice: random.Random) -> None:
        """Commands, which a replica may replay at once."""
        for _ in range(dice.choice([1, 1, 3])):
            self.world.commit(dice.choice(["product", "stock", "stock", "catalogue"]), dice.choice([1, 1, 2]))
        if dice.random() < 0.5:
            self.world.replay(_node(dice), 99)

    def catch_up(self, dice: random.Random) -> None:
        """What goes on all the time: replay, probes, and a look at the feed."""
        self._catch_up(_node(dice))

    def replay(self, dice: random.Random) -> None:
        """A replica comes on."""
        self.world.replay(_node(dice), dice.randint(1, 3))

    def observe(self, dice: random.Random) -> None:
        """The monitor looks at a node."""
        if dice.random() < 0.4:
            self.world.observe_primary()
        else:
            self.world.observe(_node(dice))

    def pass_time(self, dice: random.Random) -> None:
        """Time passes."""
        self.world.now_s += dice.choice([0.01, 0.1, 0.1, 0.6])

    # What does not happen every day

    def restart(self, dice: random.Random) -> None:
        """A replica is killed, and answers from further back."""
        node = _node(dice)
        self.world.restart(node, dice.randint(0, 2))
        self._cut_feed(node)

    def fail_over(self, dice: random.Random) -> None:
        """Another primary goes on with a part of the log; at most twice, so that something is left."""
        if self.world.log.timeline < 3:
            self.world.fail_over(dice.randint(0, 2))

    def learn(self, _dice: random.Random) -> None:
        """The monitor hears of it before it finds the new primary."""
        self.world.learn_history()

    def write_behind_the_fork(self, dice: random.Random) -> None:
        """The old primary goes on, and a replica with it."""
        node = _node(dice)
        self.world.commit_behind_the_fork(node, "stock", 1)
        self.world.replay(node, 99)

    def rejoin(self, dice: random.Random) -> None:
        """A replica follows the new primary."""
        node = _node(dice)
        self.world.rejoin(node)
        self._cut_feed(node)

    # The feed

    def begin_look(self, dice: random.Random) -> None:
        """A look at a feed takes its snapshot."""
        self._begin_look(_node(dice))

    def end_look(self, dice: random.Random) -> None:
        """It reads where the node stands, and its answer is taken in."""
        self._end_look(_node(dice))

    # Reads

    def fill(self, dice: random.Random) -> None:
        """A read that nothing comes between."""
        fill = self._begin_fill(dice)
        if fill is not None:
            self._advance(fill)
            self._advance(fill)

    def begin_fill(self, dice: random.Random) -> None:
        """A read begins that memory cannot answer."""
        self._begin_fill(dice)

    def take_snapshot(self, dice: random.Random) -> None:
        """A read's statement takes its snapshot."""
        waiting = [fill for fill in self.fills if not fill.sent.done()]
        if waiting:
            self._advance(dice.choice(waiting))

    def end_fill(self, dice: random.Random) -> None:
        """A read's answer comes."""
        waiting = [fill for fill in self.fills if fill.sent.done()]
        if waiting:
            self._advance(dice.choice(waiting))

    def ask(self, dice: random.Random) -> None:
        """A client asks; what memory gives is held against the truth."""
        key, with_token = dice.choice(KEYS), dice.random() < 0.6
        ask = self._ask(dice.choice(["eventual", "causal", "bounded"]), self.token if with_token else None)
        document = self.cache.find(key, ask)
        if document is None:
            return
        self.hits += 1
        self._check_answer(key, ask, document)
        if with_token or self.token is None:
            self.token = document.answer.token

    def take_token(self, dice: random.Random) -> None:
        """The client gets the token of a command that was committed a while ago."""
        log = self.world.log
        self.token = CausalToken(SYSTEM, log.timeline, lsn_of(max(0, len(log.commits) - dice.randint(0, 3))))

    # Checks

    def _check_entries(self) -> None:
        """The claim behind every hit, for all entries at every moment."""
        for entry in self.cache._entries:
            if not entry.source.ended:
                self._check_entry(entry)

    def _check_entry(self, entry: Entry) -> None:
        node = self.world.replicas[entry.source.node]
        if node.started_at != entry.source.started_at:
            return  # the process cannot know yet; what the entry says is true of the server that was
        shown = json.loads(entry.body)
        position = max(entry.source.coherent_bytes, entry.covered_bytes) // STEP
        expected = last_touching(node.log.commits[:position], entry.key)
        assert shown["place"] >= expected, f"{entry} does not show commit {expected}"

    def _check_answer(self, key: Key, ask: Ask, document: Document) -> None:
        assert document.body is not None
        shown, token, log = json.loads(document.body), document.answer.token, self.world.log
        assert shown["place"] * STEP <= token.lsn.bytes, "the token covers what is shown"
        true_history = self.world.log.forks
        if ask.token is not None:
            assert token.lsn >= ask.token.lsn
        if ask.token is not None and ask.policy.consistency != "eventual":
            fork = dict(true_history).get(ask.token.timeline)
            is_true = ask.token.timeline == log.timeline or (fork is not None and ask.token.lsn <= fork)
            if is_true:
                expected = last_touching(log.commits[: ask.token.lsn.bytes // STEP], key)
                assert shown["place"] >= expected, "everything that the token has seen is shown"
                assert not expected or log.commits[expected - 1].number in shown["numbers"]
        lag_ms = document.answer.lag_ms
        if ask.policy.consistency != "causal":
            assert lag_ms is not None
            assert lag_ms <= ask.policy.max_lag_ms
        if lag_ms is not None and self.world.is_aware():
            before_s = self.world.now_s - lag_ms / 1000
            old = [commit for commit in log.commits if commit.at_s < before_s]
            assert shown["place"] >= last_touching(old, key), "nothing older than the lag is missing"

    # Steps

    def _catch_up(self, node: str) -> None:
        self.world.observe_primary()
        self.world.replay(node, 99)
        self.world.observe(node)
        self._begin_look(node)
        self._end_look(node)

    def _cut_feed(self, node: str) -> None:
        self.looking.pop(node, None)
        self.reached[node] = None

    def _begin_look(self, node: str) -> None:
        source = self.cache.source(node) or self._begin_source(node)
        if source is not None and node not in self.looking:
            row = self.world.look(node, source.head, LIMIT)
            self.looking[node] = Looking(source, row, self.world.now_s)

    def _end_look(self, node: str) -> None:
        looking, state = self.looking.pop(node, None), self.world.snapshot.node(node)
        if looking is None or state is None or state.observation is None or state.role != "replica":
            return
        row = {**looking.row, **self.world.stand(node)}
        try:
            self.reached[node] = follow.take_in(
                self.cache,
                looking.source,
                state.observation,
                row,
                before=self.reached.get(node),
                heard_at_s=looking.heard_at_s,
            )
        except PositionMovedError:
            self.reached[node] = None

    def _begin_fill(self, dice: random.Random) -> Fill | None:
        node, key, token = _node(dice), dice.choice(KEYS), self.token if dice.random() < 0.3 else None
        state = self.world.snapshot.node(node)
        if state is None or state.role != "replica" or not state.is_fresh(self.world.now_s):
            return None
        assert state.observation is not None
        if token is not None and token.lsn > state.observation.replayed_lsn:
            return None  # the router would not choose it
        fill = Fill(state, key, self.loop.create_future(), self.loop.create_future())
        # Straight into the air: what memory could answer is what `ask` is for.
        flight = Flight(key, self._ask("causal", token), tuple(self.cache._sources.values()))
        fill.task = self.loop.create_task(self.cache._fly(flight, lambda: self._read(fill)))
        self.fills.append(fill)
        self._run()
        return fill

    def _advance(self, fill: Fill) -> None:
        """Takes a read's snapshot; the second time, ends it."""
        (fill.came if fill.sent.done() else fill.sent).set_result(None)
        self._run()
        if fill.task.done():
            self.fills.remove(fill)
            fill.task.exception()

    def _begin_source(self, node: str) -> Source | None:
        state = self.world.snapshot.node(node)
        if state is None or state.observation is None or state.role != "replica":
            return None
        replica = self.world.replicas[node]
        if state.observation.started_at != replica.started_at:
            return None
        source = Source(node, replica.started_at, replica.replayed, self.world.now_s)
        self.cache.begin(source)
        self.reached[node] = None
        return source

    async def _read(self, fill: Fill) -> Document:
        await fill.sent
        observed = fill.node.observation
        assert observed is not None
        replica = self.world.replicas[fill.node.name]
        commits = replica.shown()
        place = last_touching(commits, fill.key)
        body = json.dumps({"place": place, "numbers": [commit.number for commit in commits]}).encode()
        row = {"started_at": replica.started_at, "in_recovery": True}
        token = CausalToken(SYSTEM, replica.log.timeline, lsn_of(len(commits)), minted_by_replica=True)
        await fill.came
        try:
            check_start(observed, row)
        except PositionMovedError as error:
            raise NodeError from error
        answer = Answer((), fill.node.name, "replica", 0.0, token, observed=observed)
        return Document(body, '"t"', answer)

    def _ask(self, consistency: Any, token: CausalToken | None) -> Ask:
        policy = Policy(consistency, 200.0 if consistency == "bounded" else 700.0)
        return Ask(policy, token, 0.1, Deadline(1e9, lambda: self.world.now_s))

    def _run(self) -> None:
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))


def _node(dice: random.Random) -> str:
    return dice.choice(["a", "a", "a", "b"])


@pytest.mark.parametrize("weights", [CALM, TROUBLED], ids=["calm", "troubled"])
def test_no_answer_is_staler_than_it_claims_whatever_the_order(
    weights: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of random orders of a hundred steps, in which memory answers hundreds of reads."""
    monkeypatch.setattr(follow, "BATCH", LIMIT)
    hits = 0

    @BOUNDS
    @given(order=orders(weights))
    def run(order: list[tuple[str, int]]) -> None:
        nonlocal hits
        hits += Interleavings().run(order)

    run()
    assert hits > 300


def test_cache_without_invalidation_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    monkeypatch.setattr(follow, "BATCH", LIMIT)
    monkeypatch.setattr(AnswerCache, "_drop", lambda *_: None)
    dice, names = random.Random(1), [name for name, weight in CALM.items() for _ in range(weight)]

    def run() -> None:
        for _ in range(100):
            Interleavings().run([(dice.choice(names), dice.randrange(2**16)) for _ in range(100)])

    with pytest.raises(AssertionError, match="does not show"):
        run()
