"""Whatever the order of fills, changes, looks at the feed, restarts and failovers: no answer is staler than it claims.

The cache and what feeds it are the real ones; only the nodes are `tests/fixtures/replicas.py`, so that each step
stands alone and Hypothesis may put them into any order.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from atelier.deadline import Deadline
from atelier.errors import NodeError
from atelier.reads.cache import answers, follow
from atelier.reads.cache.answers import AnswerCache
from atelier.reads.cache.entries import Entry, Key
from atelier.reads.cache.source import Source
from atelier.reads.document import Document
from atelier.reads.executor import Answer, Ask
from atelier.reads.position import PositionMovedError, check_start
from atelier.reads.router import Policy
from atelier.token import CausalToken
from atelier.topology.state import NodeState
from tests.fixtures.replicas import STEP, SYSTEM, Commit, World, lsn_of, touches

NODES = st.sampled_from(["a", "b"])
PRODUCTS = st.integers(1, 2)
TOPICS = st.sampled_from(["product", "stock", "stock", "catalogue"])
KEYS = st.sampled_from(
    [
        ("product_documented", 1),
        ("styles_documented", 1),
        ("styles_documented", 2),
        ("list_documented", 0, 5),
    ]
)
LIMIT = 2
BOUNDS = settings(
    max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@dataclass
class Fill:
    """A read on its way to a node and back."""

    node: NodeState
    key: Key
    task: "asyncio.Task[Document]"
    sent: "asyncio.Future[None]"
    came: "asyncio.Future[None]"
    document: Document | None = None


@dataclass
class Looking:
    """A look at a feed on its way."""

    source: Source
    row: dict[str, Any]
    heard_at_s: float
    starts: int


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


class Interleavings(RuleBasedStateMachine):
    """Every step is a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.cache = AnswerCache(
            100_000,
            look=lambda: self.world.snapshot,
            as_of_s=self.world.lag.as_of_s,
            clock=lambda: self.world.now_s,
        )
        self.sources: dict[str, Source] = {}
        self.reached: dict[str, CausalToken | None] = {}
        self.looking: dict[str, Looking] = {}
        self.fills: list[Fill] = []
        self.token: CausalToken | None = None
        self.hits = 0

    def teardown(self) -> None:
        """Leaves nothing behind."""
        for fill in self.fills:
            fill.task.cancel()
        self._run()
        self.loop.close()

    # The world

    @initialize()
    def begin(self) -> None:
        """Both feeds are followed."""
        for node in ("a", "b", "a", "b"):
            self.catch_up(node)

    @rule(topic=TOPICS, product_id=PRODUCTS)
    def commit(self, topic: str, product_id: int) -> None:
        """A command; its token may become the client's."""
        self.world.commit(topic, product_id)

    @rule(node=NODES)
    def catch_up(self, node: str) -> None:
        """What goes on all the time: replay, probes, and a look at the feed."""
        self.world.observe_primary()
        self.world.replay(node, 99)
        self.world.observe(node)
        self.begin_look(node)
        self.end_look(node)

    @rule(node=NODES, key=KEYS, with_token=st.booleans())
    def fill(self, node: str, key: Key, with_token: bool) -> None:
        """A read that nothing comes between."""
        before = len(self.fills)
        self.begin_fill(node, key, with_token)
        if len(self.fills) > before:
            self.take_snapshot(before)
            self.end_fill(before)

    @rule(node=NODES, count=st.integers(1, 4))
    def replay(self, node: str, count: int) -> None:
        """A replica comes on."""
        self.world.replay(node, count)

    @rule(node=NODES)
    def observe(self, node: str) -> None:
        """The monitor looks at a replica."""
        self.world.observe(node)

    @rule()
    def observe_primary(self) -> None:
        """The monitor looks at the primary."""
        self.world.observe_primary()

    @rule(
        trouble=st.sampled_from(["restart", "fail over", "learn", "old primary", "rejoin"]),
        node=NODES,
        size=st.integers(0, 2),
    )
    def trouble(self, trouble: str, node: str, size: int) -> None:
        """What does not happen every day: a killed replica, another primary, a replica that follows it."""
        match trouble:
            case "restart":
                self.world.restart(node, size)
            case "fail over":
                self.world.fail_over(size)
            case "learn":
                self.world.learn_history()
            case "old primary":
                self.world.commit_behind_the_fork(node, "stock", 1)
            case "rejoin":
                self.world.rejoin(node)
        if trouble in ("restart", "rejoin"):
            self.looking.pop(node, None)
            self.reached[node] = None

    @rule(seconds=st.sampled_from([0.01, 0.01, 0.1, 0.6]))
    def pass_time(self, seconds: float) -> None:
        """Time passes."""
        self.world.now_s += seconds

    # The feed

    @rule(node=NODES)
    def begin_look(self, node: str) -> None:
        """A look at a feed takes its snapshot."""
        source = self.cache.source(node) or self._begin_source(node)
        if source is None or node in self.looking:
            return
        row = self.world.look(node, source.head, LIMIT)
        self.looking[node] = Looking(source, row, self.world.now_s, self.world.replicas[node].starts)

    @rule(node=NODES)
    def end_look(self, node: str) -> None:
        """It reads where the node stands, and its answer is taken in."""
        looking = self.looking.pop(node, None)
        state = self.world.snapshot.node(node)
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

    # Reads

    @rule(node=NODES, key=KEYS, with_token=st.booleans())
    def begin_fill(self, node: str, key: Key, with_token: bool) -> None:
        """A read begins that memory cannot answer."""
        state = self.world.snapshot.node(node)
        if state is None or state.role != "replica" or not state.is_fresh(self.world.now_s):
            return
        token = self.token if with_token else None
        if token is not None and token.lsn > state.observation.replayed_lsn:
            return  # the router would not choose it
        fill = Fill(state, key, None, self.loop.create_future(), self.loop.create_future())  # type: ignore[arg-type]
        # Straight into the air: what memory could answer is what `ask` is for.
        flight = answers.Flight(key, self._ask("causal", token), tuple(self.cache._sources.values()))
        fill.task = self.loop.create_task(self.cache._fly(flight, lambda: self._read(fill)))
        self.fills.append(fill)
        self._run()

    @precondition(lambda self: self.fills)
    @rule(place=st.integers(0, 5))
    def take_snapshot(self, place: int) -> None:
        """A read's statement takes its snapshot."""
        fill = self.fills[place % len(self.fills)]
        if not fill.sent.done():
            fill.sent.set_result(None)
            self._run()

    @precondition(lambda self: self.fills)
    @rule(place=st.integers(0, 5))
    def end_fill(self, place: int) -> None:
        """A read's answer comes."""
        fill = self.fills[place % len(self.fills)]
        if fill.sent.done() and not fill.came.done():
            fill.came.set_result(None)
        self._run()
        if fill.task.done():
            self.fills.remove(fill)
            fill.task.exception()

    @rule(key=KEYS, consistency=st.sampled_from(["eventual", "causal", "bounded"]), with_token=st.booleans())
    def ask(self, key: Key, consistency: Any, with_token: bool) -> None:
        """A client asks; what memory gives is held against the truth."""
        ask = self._ask(consistency, self.token if with_token else None)
        document = self.cache.find(key, ask)
        if document is None:
            return
        self.hits += 1
        self._check_answer(key, ask, document)
        if with_token or self.token is None:
            self.token = document.answer.token

    @rule(back=st.integers(0, 3))
    def take_token(self, back: int) -> None:
        """The client gets the token of a command that was committed a while ago."""
        log = self.world.log
        self.token = CausalToken(SYSTEM, log.timeline, lsn_of(max(0, len(log.commits) - back)))

    @invariant()
    def every_entry_shows_all_up_to_its_position(self) -> None:
        """The claim behind every hit, for all entries at every moment."""
        for entry in self.cache._entries:
            if not entry.source.ended:
                self._check_entry(entry)

    # Checks

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


def test_no_answer_is_staler_than_it_claims_whatever_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred random orders of sixty steps."""
    monkeypatch.setattr(follow, "BATCH", LIMIT)
    run_state_machine_as_test(Interleavings, settings=BOUNDS)
