"""The cache by itself: what it keeps, to whom it gives it, what a change takes away, and how little it runs twice."""

import asyncio
import dataclasses
import random
import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from atelier.deadline import Deadline
from atelier.errors import DeadlineExceededError, NoReplicaError
from atelier.lsn import Lsn
from atelier.reads.cache.answers import AnswerCache
from atelier.reads.cache.entries import Key
from atelier.reads.cache.follow import take_in
from atelier.reads.cache.source import COHERENCE_EXPIRES_S, News, Source
from atelier.reads.document import Document
from atelier.reads.executor import Answer, Ask
from atelier.reads.position import PositionMovedError
from atelier.reads.router import Consistency, Policy
from atelier.telemetry import CACHE_MISSES
from atelier.token import CausalToken
from tests.fixtures.replicas import SYSTEM, World, lsn_of

pytestmark = pytest.mark.anyio

PRODUCT: Key = ("product_documented", 1)
STYLES: Key = ("styles_documented", 1)
LIVE: Key = ("product_live", 1, "hr-rfp")
RELATED: Key = ("related", 1)
PAGE: Key = ("list_documented", 0, 5)
ALL = (PRODUCT, STYLES, LIVE, RELATED, PAGE)


class Desk:
    """A cache over a world in which both replicas have replayed three commits, and the feed of `a` has told of them."""

    def __init__(self, capacity_bytes: int = 1_000_000) -> None:
        self.world = World()
        for _ in range(3):
            self.world.commit("product", 9)
        self.world.observe_primary()
        for name in ("a", "b"):
            self.world.replay(name, 3)
            self.world.observe(name)
        self.cache = AnswerCache(
            capacity_bytes,
            look=lambda: self.world.snapshot,
            as_of_s=self.world.lag.as_of_s,
            clock=lambda: self.world.now_s,
        )
        self.source = Source("a", self.world.replicas["a"].started_at, 3, self.world.now_s)
        self.cache.begin(self.source)
        self.tell(coherent=3)
        self.reads = 0

    def tell(self, *, coherent: int | None = None, **changes: Any) -> None:
        """The feed of `a` is heard."""
        token = None if coherent is None else at(coherent)
        self.cache.learn(self.source, News(head=self.source.head, coherent=token, **changes), self.world.now_s)

    async def fetch(
        self, key: Key, ask: Ask | None = None, read: Callable[[], Awaitable[Document]] | None = None
    ) -> Document:
        """What a reader does."""
        return await self.cache.fetch(key, ask or self.ask(), read or self.read)

    async def read(self) -> Document:
        """A read that `a` answers, numbered."""
        self.reads += 1
        return self.document(f"{self.reads}".encode())

    def document(self, body: bytes | None, *, node: str = "a", seen: int = 3, role: str = "replica") -> Document:
        """What a node answers now."""
        state = self.world.snapshot.node(node)
        assert state is not None
        observed = state.observation if role == "replica" else None
        answer = Answer((), node, "replica", 5.0, at(seen), observed=observed)
        return Document(body, '"tag"', answer, missing="" if body else "there is none", links="<l>")

    def ask(
        self, consistency: Consistency = "eventual", token: CausalToken | None = None, max_lag_ms: float = 10_000
    ) -> Ask:
        """What a client asks."""
        return Ask(Policy(consistency, max_lag_ms), token, 0.1, Deadline.after(5.0, lambda: self.world.now_s))


def at(position: int, timeline: int = 1) -> CausalToken:
    """The token of a replica that has replayed so many commits."""
    return CausalToken(SYSTEM, timeline, lsn_of(position), minted_by_replica=True)


@pytest.fixture
def desk() -> Desk:
    """One for each test."""
    return Desk()


# Giving


async def test_second_reader_is_answered_from_memory(desk: Desk) -> None:
    """The same bytes, tag and links, in the name of the node that read them, with nothing spent."""
    first = await desk.fetch(PRODUCT)
    second = await desk.fetch(PRODUCT)
    assert desk.reads == 1
    assert (second.body, second.tag, second.links) == (first.body, first.tag, first.links)
    assert (second.answer.node, second.answer.reason, second.answer.token) == ("a", "memory", at(3))
    assert second.answer.timings.db_ms == 0


@pytest.mark.parametrize("consistency", ["causal", "bounded"])
async def test_token_beyond_the_known_position_is_read_for(desk: Desk, consistency: Consistency) -> None:
    """Up to the position that the feed vouches for memory answers; one byte further the replica does."""
    await desk.fetch(PRODUCT)
    await desk.fetch(PRODUCT, desk.ask(consistency, at(3)))
    assert desk.reads == 1
    beyond = CausalToken(SYSTEM, 1, lsn_of(3).next())
    await desk.fetch(PRODUCT, desk.ask(consistency, beyond))
    assert desk.reads == 2


async def test_answer_vouches_for_what_its_node_had_replayed_before_it_was_read(desk: Desk) -> None:
    """Who writes and reads finds the next read in memory, before the feed has come so far."""
    desk.world.commit("product", 1)
    desk.world.replay("a", 1)
    desk.world.observe("a")
    await desk.fetch(PRODUCT, desk.ask("causal", at(4)), lambda: _ready(desk.document(b"new", seen=4)))
    found = desk.cache.find(PRODUCT, desk.ask("causal", at(4)))
    assert found is not None
    assert found.body == b"new"


async def test_older_answer_does_not_take_the_place_of_a_newer_one(desk: Desk) -> None:
    """A read that was sent to a node before it came on ends after one that was sent later."""
    old = desk.document(b"old")
    desk.world.commit("product", 2)
    desk.world.replay("a", 1)
    desk.world.observe("a")
    await desk.fetch(PRODUCT, None, lambda: _ready(desk.document(b"new", seen=4)))
    await desk.fetch(PRODUCT, desk.ask("strong"), lambda: _ready(old))
    await desk.fetch(PRODUCT, desk.ask("causal", at(5)), lambda: _ready(old))
    found = desk.cache.find(PRODUCT, desk.ask())
    assert found is not None
    assert found.body == b"new"


async def test_answer_of_a_silent_node_gives_way_to_any_other(desk: Desk) -> None:
    """Else the place of a node that froze far ahead would stay taken."""
    other = Source("b", desk.world.replicas["b"].started_at, 3, desk.world.now_s)
    desk.cache.begin(other)
    desk.world.commit("product", 2)
    desk.world.replay("b", 1)
    desk.world.observe("b")
    await desk.fetch(PRODUCT, None, lambda: _ready(desk.document(b"ahead", node="b", seen=4)))
    for silence_s, shown in ((0.5, b"ahead"), (0.6, b"behind")):
        desk.world.now_s += silence_s
        desk.world.observe("a")
        desk.world.observe("b")
        desk.tell()
        behind = desk.document(b"behind")
        await desk.fetch(PRODUCT, desk.ask("causal", at(9)), lambda behind=behind: _ready(behind))  # type: ignore[misc]
        found = desk.cache.find(PRODUCT, desk.ask("causal"))
        assert found is not None
        assert found.body == shown


async def test_token_of_an_answer_from_memory_contains_the_one_that_was_sent(desk: Desk) -> None:
    """Sending it back can never lead to an older answer."""
    await desk.fetch(PRODUCT, None, lambda: _ready(desk.document(b"1", seen=2)))
    for consistency in ("causal", "eventual"):
        found = desk.cache.find(PRODUCT, desk.ask(consistency, at(3)))
        assert found is not None
        assert found.answer.token == at(3)
    # One that memory does not have to contain is merged all the same.
    found = desk.cache.find(PRODUCT, desk.ask("eventual", at(7)))
    assert found is not None
    assert found.answer.token == at(7)


async def test_who_sends_no_token_gets_the_position_that_the_answer_stands_at(desk: Desk) -> None:
    """All answers of a node stand at one position, so that it is sealed once; one that has seen more says so."""
    await desk.fetch(PRODUCT, None, lambda: _ready(desk.document(b"1", seen=1)))
    await desk.fetch(RELATED, None, lambda: _ready(desk.document(b"1", seen=4)))
    for key, position in ((PRODUCT, 3), (RELATED, 4)):
        found = desk.cache.find(key, desk.ask())
        assert found is not None
        assert found.answer.token == at(position)


@pytest.mark.parametrize("token", [at(1, timeline=2), CausalToken(8, 1, lsn_of(1))], ids=["unknown", "lost"])
async def test_token_of_another_history_is_never_judged_by_memory(desk: Desk, token: CausalToken) -> None:
    """Whether it is lost is for the read to say."""
    await desk.fetch(PRODUCT)
    for consistency in ("causal", "eventual", "bounded"):
        assert desk.cache.find(PRODUCT, desk.ask(consistency, token)) is None


async def test_bound_on_age_is_kept_by_memory(desk: Desk) -> None:
    """The lag that an answer claims grows with time, and ends at the bound."""
    await desk.fetch(PRODUCT)
    desk.world.now_s += 0.2
    found = desk.cache.find(PRODUCT, desk.ask("bounded", max_lag_ms=201))
    assert found is not None
    assert found.answer.lag_ms == pytest.approx(200)
    assert desk.cache.find(PRODUCT, desk.ask("bounded", max_lag_ms=199)) is None
    assert desk.cache.find(PRODUCT, desk.ask("eventual", max_lag_ms=199)) is None
    assert desk.cache.find(PRODUCT, desk.ask("causal", at(1))) is not None


async def test_strong_read_is_never_answered_from_memory(desk: Desk) -> None:
    """It asks for the primary."""
    await desk.fetch(PRODUCT)
    await desk.fetch(PRODUCT, desk.ask("strong"))
    assert desk.reads == 2


async def test_cache_that_is_switched_off_keeps_nothing() -> None:
    """No bytes, no memory."""
    desk = Desk(capacity_bytes=0)
    for _ in range(2):
        await desk.fetch(PRODUCT)
    assert desk.reads == 2


# Keeping


async def test_what_is_not_there_is_not_remembered(desk: Desk) -> None:
    """Anybody can ask for any number of things that are not there."""
    await desk.fetch(PRODUCT, None, lambda: _ready(desk.document(None)))
    assert desk.cache.find(PRODUCT, desk.ask()) is None


async def test_answer_of_the_primary_is_not_kept(desk: Desk) -> None:
    """Its commits become visible after their positions are flushed, so no position vouches for it."""
    await desk.fetch(PRODUCT, None, lambda: _ready(desk.document(b"1", role="primary")))
    assert desk.cache.find(PRODUCT, desk.ask()) is None


async def test_answer_of_a_node_that_nobody_follows_is_not_kept(desk: Desk) -> None:
    """Nobody would tell of its changes."""
    await desk.fetch(PRODUCT, None, lambda: _ready(desk.document(b"1", node="b")))
    assert desk.cache.find(PRODUCT, desk.ask()) is None


async def test_answer_beyond_a_fork_is_not_kept(desk: Desk) -> None:
    """A replica that has followed the old primary too far says so by its token."""
    reading = asyncio.Event()

    async def read() -> Document:
        await reading.wait()
        return desk.document(b"lost", seen=4)

    running = asyncio.create_task(desk.fetch(PRODUCT, None, read))
    await asyncio.sleep(0)
    desk.world.fail_over(0)
    desk.world.observe_primary()
    reading.set()
    await running
    assert desk.cache.find(PRODUCT, desk.ask()) is None


async def test_answer_that_was_overtaken_by_its_own_change_is_not_kept(desk: Desk) -> None:
    """The feed tells of a change while the read is under way: it may have been read before."""

    async def read() -> Document:
        desk.tell(changed=(1,))
        return await desk.read()

    await desk.fetch(PRODUCT, None, read)
    assert desk.cache.find(PRODUCT, desk.ask()) is None


async def test_change_of_stock_does_not_disturb_a_read_that_shows_none(desk: Desk) -> None:
    """Five hundred sales a second leave the rest of a page in memory."""

    async def read() -> Document:
        desk.tell(stocked=(1,))
        return await desk.read()

    for key in (PRODUCT, STYLES, RELATED):
        await desk.fetch(key, None, read)
    assert [desk.cache.find(key, desk.ask()) is not None for key in (PRODUCT, STYLES, RELATED)] == [True, False, True]


async def test_least_recently_used_answers_give_way(desk: Desk) -> None:
    """What is read again stays."""
    small = Desk(capacity_bytes=20_000)
    for number in range(1, 1000):
        await small.fetch(("related", number))
        await small.fetch(("related", 1))
    assert small.cache.find(("related", 1), small.ask()) is not None
    assert small.cache.find(("related", 2), small.ask()) is None
    assert sample(small)["atelier_cache_bytes"] <= 20_000
    assert sample(small)["atelier_cache_entries"] >= 10


async def test_answer_that_would_displace_many_is_not_kept() -> None:
    """One page of a thousand products is not worth a hundred products."""
    small = Desk(capacity_bytes=20_000)
    await small.fetch(PAGE, None, lambda: _ready(small.document(b"x" * 5_000)))
    assert small.cache.find(PAGE, small.ask()) is None


async def test_memory_stays_within_its_bound() -> None:
    """By the interpreter's own count, with bodies of all sizes, many dialects and pages, and changes in between."""
    capacity_bytes, dice = 4_000_000, random.Random(3)
    desk = Desk(capacity_bytes)
    tracemalloc.start()
    try:
        before_bytes = tracemalloc.get_traced_memory()[0]
        for number in range(20_000):
            product_id = dice.randrange(1, 10**15)
            key: Key = dice.choice(
                [
                    ("product_live", product_id, f"campus-{number}"),
                    ("product_live", 5, f"campus-{number}"),
                    ("list_live", product_id, 5, f"campus-{number}"),
                    ("related", product_id),
                ]
            )
            body = bytes(dice.choice([10, 10, 200, 3_000]))
            await desk.fetch(key, None, lambda body=body: _ready(desk.document(body)))  # type: ignore[misc]
            if number % 500 == 0:
                desk.tell(changed=(product_id,))
        taken_bytes = tracemalloc.get_traced_memory()[0] - before_bytes
    finally:
        tracemalloc.stop()
    assert sample(desk)["atelier_cache_bytes"] <= capacity_bytes
    assert taken_bytes <= capacity_bytes
    assert taken_bytes >= capacity_bytes / 4, "the bound is of use"


# Forgetting


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"stocked": (1,)}, {PRODUCT, LIVE, RELATED, PAGE}),
        ({"changed": (1,)}, set()),
        ({"changed": (2,)}, {PRODUCT, LIVE, RELATED, STYLES}),
        ({"stocked": (2,)}, set(ALL)),
        ({"replaced": True}, set()),
    ],
    ids=["stock", "product", "another product", "another stock", "catalogue"],
)
async def test_change_takes_away_what_it_touches(desk: Desk, change: dict[str, Any], left: set[Key]) -> None:
    """Exactly that: pages show all products, styles show stock."""
    for key in ALL:
        await desk.fetch(key)
    desk.tell(**change)
    assert {key for key in ALL if desk.cache.find(key, desk.ask())} == left


async def test_change_on_one_node_leaves_the_answers_of_another(desk: Desk) -> None:
    """A replica that is behind has not seen it: what it answered is what it would answer again."""
    other = Source("b", desk.world.replicas["b"].started_at, 3, desk.world.now_s)
    desk.cache.begin(other)
    await desk.fetch(PRODUCT)
    desk.cache.learn(other, News(head=4, changed=(1,)), desk.world.now_s)
    assert desk.cache.find(PRODUCT, desk.ask("causal")) is not None


async def test_feed_that_is_not_heard_vouches_for_nothing(desk: Desk) -> None:
    """After a second of silence the replica is asked; what was kept is good again when it is heard again."""
    await desk.fetch(PRODUCT)
    desk.world.now_s += COHERENCE_EXPIRES_S + 0.01
    desk.world.observe("a")
    assert desk.cache.find(PRODUCT, desk.ask("causal")) is None
    desk.tell()
    assert desk.cache.find(PRODUCT, desk.ask("causal")) is not None


async def test_restart_of_a_node_ends_what_it_answered(desk: Desk) -> None:
    """A standby that was killed can answer from further back."""
    await desk.fetch(PRODUCT)
    desk.world.restart("a", 1)
    desk.world.observe("a")
    assert desk.cache.find(PRODUCT, desk.ask()) is None
    assert sample(desk)["atelier_cache_entries"] == 0


async def test_new_primary_ends_what_was_kept(desk: Desk) -> None:
    """Also on a replica that goes on without a restart."""
    await desk.fetch(PRODUCT)
    desk.world.fail_over(0)
    desk.world.observe_primary()
    assert desk.cache.find(PRODUCT, desk.ask()) is None


async def test_position_beyond_a_fork_vouches_for_nothing(desk: Desk) -> None:
    """A replica that still follows the old primary has a high position, of a history that is lost."""
    desk.world.fail_over(0)
    desk.world.observe_primary()
    again = Source("a", desk.world.replicas["a"].started_at, 3, desk.world.now_s)
    desk.cache.begin(again)
    await desk.fetch(PRODUCT)
    token = desk.world.commit("product", 1)  # the new primary's, which this replica has not
    assert desk.cache.find(PRODUCT, desk.ask("causal", at(3))) is not None
    desk.cache.learn(again, News(head=5, coherent=at(5)), desk.world.now_s)
    assert desk.cache.find(PRODUCT, desk.ask("causal", token)) is None


@pytest.mark.parametrize("wrong", [{"floor": 4}, {"started": 1}, {"in_recovery": False}])
async def test_feed_with_a_gap_ends_what_its_node_answered(desk: Desk, wrong: dict[str, Any]) -> None:
    """Changes that were pruned unheard, another start of the server, a promotion."""
    await desk.fetch(PRODUCT)
    row = {**desk.world.look("a", 3, 10), **desk.world.stand("a"), **wrong}
    row["started_at"] += timedelta(seconds=row.get("started", 0))
    state = desk.world.snapshot.node("a")
    assert state is not None
    assert state.observation is not None
    with pytest.raises(PositionMovedError):
        take_in(desk.cache, desk.source, state.observation, row, before=None, heard_at_s=desk.world.now_s)
    assert desk.cache.find(PRODUCT, desk.ask()) is None


# Running once


async def test_many_misses_run_one_read(desk: Desk) -> None:
    """A page that all look at and that was just changed costs one statement."""
    answers = await asyncio.gather(*(desk.fetch(STYLES, None, _slowly(desk)) for _ in range(1000)))
    assert desk.reads == 1
    assert {answer.body for answer in answers} == {b"1"}


async def test_reader_with_the_same_or_an_older_token_shares_a_read(desk: Desk) -> None:
    """What covers the first covers it too."""
    asks = [desk.ask("causal", at(9)), desk.ask("causal", at(9)), desk.ask("causal", at(5)), desk.ask("causal")]
    await asyncio.gather(*(desk.fetch(STYLES, ask, _slowly(desk)) for ask in asks))
    assert desk.reads == 1


@pytest.mark.parametrize(("consistency", "token"), [("causal", at(6)), ("bounded", None)])
async def test_reader_that_asks_for_more_rides_alone(
    desk: Desk, consistency: Consistency, token: CausalToken | None
) -> None:
    """The first reader's answer might not be good enough for it, and it does not wait to find out."""
    first = desk.ask(consistency, None if token is None else at(1)) if consistency == "causal" else desk.ask()
    other = desk.ask(consistency, token)
    await asyncio.gather(*(desk.fetch(STYLES, ask, _slowly(desk)) for ask in (first, other)))
    assert desk.reads == 2


async def test_readers_with_a_token_each_share_a_read(desk: Desk) -> None:
    """Every replica has replayed what each has seen, so whichever answers will do; and no token is lost over it."""
    tokens = [CausalToken(SYSTEM, 1, Lsn(number)) for number in range(1, lsn_of(3).bytes + 1)]
    asks = [desk.ask(word, token) for token in tokens for word in ("causal", "eventual")]
    answers = await asyncio.gather(*(desk.fetch(STYLES, ask, _slowly(desk)) for ask in [*asks, desk.ask()]))
    assert desk.reads == 1
    for ask, answer in zip(asks, answers, strict=False):
        assert ask.token is not None
        assert answer.answer.token.lsn >= ask.token.lsn
    late = [desk.ask("eventual", at(9)), desk.ask("eventual", at(7))]
    await asyncio.gather(*(desk.fetch(RELATED, ask, _slowly(desk)) for ask in [desk.ask(), *late]))
    assert desk.reads == 2


@pytest.mark.parametrize("first", ["bounded", "causal"])
async def test_read_that_nobody_can_join_is_in_nobodys_way(desk: Desk, first: Consistency) -> None:
    """Those who come after it share one among them: it may be waiting for a replica, they need not."""
    slow = asyncio.Event()

    async def wait() -> Document:
        await slow.wait()
        return await desk.read()

    waiting = asyncio.create_task(desk.fetch(STYLES, desk.ask(first, at(9)), wait))
    await asyncio.sleep(0)
    await asyncio.gather(*(desk.fetch(STYLES, None, _slowly(desk)) for _ in range(100)))
    assert desk.reads == 1
    slow.set()
    await waiting


async def test_shared_answer_is_looked_at_before_it_is_taken(desk: Desk) -> None:
    """From a node that has less than was thought, from a primary, too old, or of a lost history: each reads itself."""
    state = desk.world.snapshot.node("a")
    assert state is not None
    assert state.observation is not None
    behind = msgspec.structs.replace(
        desk.document(b"old").answer, observed=dataclasses.replace(state.observation, replayed_lsn=lsn_of(1))
    )
    promoted = msgspec.structs.replace(behind, observed=dataclasses.replace(state.observation, in_recovery=False))
    lost = CausalToken(SYSTEM + 1, 1, lsn_of(1))
    for ask, answer in (
        (desk.ask("causal", at(3)), behind),
        (desk.ask("causal", at(3)), promoted),
        (desk.ask("causal", at(3)), desk.document(b"", role="primary").answer),
        (desk.ask("eventual", max_lag_ms=1), behind),
        (desk.ask("causal", lost), behind),
        (desk.ask("eventual", lost), behind),
    ):
        fresh, own = Desk(), 0

        async def read(answer: Answer = answer) -> Document:
            await asyncio.sleep(0)
            return Document(b"old", '"tag"', answer)

        async def read_alone() -> Document:
            nonlocal own
            own += 1
            return desk.document(b"new")

        joined = asyncio.create_task(fresh.fetch(STYLES, None, read))
        await asyncio.sleep(0)
        assert (await fresh.fetch(STYLES, ask, read_alone)).body == b"new", ask
        assert own == 1
        await joined


async def test_new_catalogue_costs_a_read_for_each_answer(desk: Desk) -> None:
    """All is forgotten at once while all are looking, each with a token of its own; nobody's read is many."""
    for key in ALL:
        await desk.fetch(key)
    desk.tell(coherent=3, replaced=True)
    desk.reads = 0
    tokens = [CausalToken(SYSTEM, 1, Lsn(number)) for number in range(1, lsn_of(3).bytes + 1)]
    asks = [(key, desk.ask("causal", token)) for token in tokens for key in ALL]
    await asyncio.gather(*(desk.fetch(key, ask, _slowly(desk)) for key, ask in asks))
    assert desk.reads == len(ALL)


async def test_lone_reader_is_not_delayed(desk: Desk) -> None:
    """Neither a hit nor a lone miss lets anybody else run first."""
    others: list[str] = []
    asyncio.get_running_loop().call_soon(others.append, "ran")
    for _ in range(2):
        await desk.fetch(PRODUCT)
    assert desk.reads == 1
    assert not others


async def test_reader_that_leaves_does_not_take_the_others_along(desk: Desk) -> None:
    """The next one reads."""
    tasks = [asyncio.create_task(desk.fetch(STYLES, None, _slowly(desk))) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True, True, *[False] * 8]
    assert desk.reads <= 2


async def test_reader_that_fails_does_not_take_the_others_along(desk: Desk) -> None:
    """Each gets its own error, or its own answer."""
    failing = True

    async def read() -> Document:
        nonlocal failing
        await asyncio.sleep(0)
        if failing:
            failing = False
            raise NoReplicaError
        return await desk.read()

    answers = await asyncio.gather(*(desk.fetch(STYLES, None, read) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(answer, NoReplicaError) for answer in answers) == 1
    assert desk.reads == 1


async def test_reader_that_shares_a_read_keeps_its_own_deadline(desk: Desk) -> None:
    """One request's time is not another's."""
    stuck = asyncio.Event()

    async def read() -> Document:
        await stuck.wait()
        return await desk.read()

    first = asyncio.create_task(desk.fetch(STYLES, None, read))
    await asyncio.sleep(0)
    hurried = Ask(Policy("eventual", 10_000), None, 0.1, Deadline(desk.world.now_s + 0.02, lambda: desk.world.now_s))
    with pytest.raises(DeadlineExceededError):
        await desk.fetch(STYLES, hurried, read)
    stuck.set()
    assert (await first).body == b"1"


async def test_misses_are_counted_by_reason(desk: Desk) -> None:
    """What an operator sees when memory does not help."""

    def counted(reason: str) -> float:
        return CACHE_MISSES.value(reason)

    reasons = ("absent", "behind", "bound", "history", "unheard")
    before = {reason: counted(reason) for reason in reasons}
    desk.cache.find(PRODUCT, desk.ask())
    await desk.fetch(PRODUCT)
    desk.cache.find(PRODUCT, desk.ask("causal", at(9)))
    desk.cache.find(PRODUCT, desk.ask("causal", at(9, timeline=3)))
    desk.world.now_s += 0.5
    desk.cache.find(PRODUCT, desk.ask("bounded", max_lag_ms=1))
    desk.world.now_s += 1
    desk.cache.find(PRODUCT, desk.ask())
    assert {reason: counted(reason) - before[reason] for reason in reasons} == {
        "absent": 2,
        "behind": 1,
        "history": 1,
        "bound": 1,
        "unheard": 1,
    }


def sample(desk: Desk) -> dict[str, float]:
    """The gauges."""
    return {
        family.name: one.value for family in desk.cache.observe().collect() for one in family.samples if not one.labels
    }


async def _ready(document: Document) -> Document:
    return document


def _slowly(desk: Desk) -> Callable[[], Awaitable[Document]]:
    async def read() -> Document:
        for _ in range(3):
            await asyncio.sleep(0)
        return await desk.read()

    return read
