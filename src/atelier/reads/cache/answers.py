"""The cache of one process: finds an answer that keeps what was asked, and has one read run where there is none.

The rule, and why it holds: `docs/decisions/0007-answers-from-memory.md`.
"""

from collections.abc import Awaitable, Callable, Iterable

from msgspec.structs import replace

from atelier.deadline import Clock
from atelier.lsn import Lsn
from atelier.reads.cache.entries import PAGES, Entries, Entry, Key, shelf_of, shows_stock
from atelier.reads.cache.flights import Flight
from atelier.reads.cache.source import News, Source
from atelier.reads.document import Document
from atelier.reads.executor import Answer, Ask, Timings
from atelier.telemetry import CACHE_DROPPED, CACHE_HITS, CACHE_MISSES, CACHE_SHARED, DECISIONS, Observed, Sample
from atelier.token import CausalToken, Standing
from atelier.topology.state import ClusterSnapshot, Observation

# How often a reader joins a flight before it flies itself: each of them may have been cancelled.
_JOINS = 3

_GAUGES = {
    "atelier_cache_entries": "Answers that are kept.",
    "atelier_cache_bytes": "What they take.",
    "atelier_cache_coherence_seconds": "How old the newest position is at which a node's kept answers are known to "
    "stand, in seconds behind the primary; absent while unknown.",
}


class AnswerCache:
    """Keeps the answers of replicas, and gives them to whoever they are good enough for.

    Everything here happens in one step of the event loop, but for the reads themselves: no lock is needed.
    """

    def __init__(
        self,
        capacity_bytes: int,
        *,
        look: Callable[[], ClusterSnapshot],
        as_of_s: Callable[[Lsn], float | None],
        clock: Clock,
    ) -> None:
        """Does no I/O.

        Args:
            capacity_bytes: the bound on what is kept; 0 keeps nothing.
            look: gives the newest snapshot of the nodes.
            as_of_s: tells since when, at the latest, a position contains everything that was committed; None for
                unknown.
            clock: monotonic, in seconds; that of the snapshots.
        """
        self._entries = Entries(capacity_bytes)
        self._look = look
        self._as_of_s = as_of_s
        self._clock = clock
        self._snapshot = look()
        self._sources: dict[str, Source] = {}
        self._flying: dict[int, set[Flight]] = {}
        self._flights: dict[Key, list[Flight]] = {}
        self.is_on = capacity_bytes > 0
        self.asked_at_s = 0.0

    # For readers

    def find(self, key: Key, ask: Ask) -> Document | None:
        """The answer from memory; None when there is none that keeps what was asked. Waits for nothing."""
        now_s = self.asked_at_s = self._clock()
        snapshot = self._compare()
        entry = self._entries.get(key)
        if entry is None:
            CACHE_MISSES.count("absent")
            return None
        source = entry.source
        lag_ms = source.lag_ms_at(now_s)
        reason = "unheard" if not source.vouches(now_s) else _why_not(entry, ask, snapshot, lag_ms)
        if reason is not None:
            CACHE_MISSES.count(reason)
            return None
        self._entries.touch(key)
        CACHE_HITS.count(key[0])
        DECISIONS.count(source.node, "memory")
        answer = Answer((), source.node, "memory", lag_ms, _token_of(entry, ask.token))
        return Document(entry.body, entry.tag, answer, links=entry.links)

    async def fetch(self, key: Key, ask: Ask, read: Callable[[], Awaitable[Document]]) -> Document:
        """The answer from memory, from a read that is under way already, or from one that is made now.

        Args:
            key: what is asked for.
            ask: what the client wants of it.
            read: makes the read.

        Raises:
            AtelierError: the read's own, and DeadlineExceededError.
        """
        if not self.is_on or ask.policy.consistency == "strong":
            return await read()
        found = self.find(key, ask)
        if found is not None:
            return found
        for _ in range(_JOINS):
            flight = self._choose_flight(key, ask)
            if flight is None:
                break
            began_s = self._clock()
            landed = await flight.join(ask.deadline)
            if landed is not None:
                shared = landed if flight.carries(ask) else self._share(landed, ask)
                if shared is None:
                    break
                CACHE_SHARED.count(key[0])
                waited = Timings(wait_ms=(self._clock() - began_s) * 1000)
                return replace(shared, answer=replace(shared.answer, timings=waited))
        sources = tuple(self._sources.values())
        return await self._fly(Flight(key, ask, sources, _reach_bytes(self._compare())), read)

    def _choose_flight(self, key: Key, ask: Ask) -> Flight | None:
        """A read under way that will do for another reader, or else one that probably will; None when there is none."""
        flights = self._flights.get(key, ())
        for suits in (Flight.carries, Flight.may_carry):
            for flight in flights:
                if suits(flight, ask):
                    return flight
        return None

    def _share(self, document: Document, ask: Ask) -> Document | None:
        """What another reader's read has brought, for this one; None when it does not keep what this one asked."""
        answer, token, snapshot = document.answer, ask.token, self._compare()
        observed, lag_ms = answer.observed, answer.lag_ms
        if observed is None or not observed.in_recovery or snapshot.judge(answer.token) is not Standing.GOOD:
            return None
        if ask.policy.consistency == "eventual" and (lag_ms is None or lag_ms > ask.policy.max_lag_ms):
            return None
        if token is None:
            return document
        if snapshot.judge(token) is not Standing.GOOD:
            return None
        if ask.policy.consistency != "eventual" and token.lsn.bytes > observed.replayed_lsn.bytes:
            return None
        return replace(document, answer=replace(answer, token=token.merge(answer.token)))

    async def _fly(self, flight: Flight, read: Callable[[], Awaitable[Document]]) -> Document:
        """Makes a read, in sight of all who tell of changes from before it begins until it is kept."""
        shelf = shelf_of(flight.key)
        flying = self._flying.setdefault(shelf, set())
        flying.add(flight)
        flights = self._flights.setdefault(flight.key, [])
        flights.append(flight)
        document = None
        try:
            document = await read()
            self._keep(flight, document)
            return document
        finally:
            flying.discard(flight)
            if not flying and self._flying.get(shelf) is flying:
                del self._flying[shelf]
            flights.remove(flight)
            if not flights:
                del self._flights[flight.key]
            flight.land(document)

    def _keep(self, flight: Flight, document: Document) -> None:
        """Keeps an answer, if the source of its node has seen all that happened to it since its read began."""
        answer, observed = document.answer, document.answer.observed
        # The token of an eventual read that sent one is merged with it: that is not what the answer has seen.
        is_merged = flight.ask.token is not None and flight.ask.policy.consistency == "eventual"
        if document.body is None or observed is None or is_merged:
            return
        snapshot = self._compare()
        source = self._sources.get(answer.node)
        if source is None or not _tells_of(source, flight, observed):
            return
        if snapshot.judge(answer.token) is not Standing.GOOD:
            return
        entry = Entry(
            flight.key, document.body, document.tag, document.links, answer.token, observed.replayed_lsn.bytes, source
        )
        if self._is_worth_more(entry):
            evicted = self._entries.put(entry)
            if evicted:
                CACHE_DROPPED.count("evicted", by=evicted)

    def _is_worth_more(self, entry: Entry) -> bool:
        """Whether an entry shows at least as much as the one that has its place, or that one is of no use now."""
        present = self._entries.get(entry.key)
        if present is None or not present.source.vouches(self._clock()):
            return True
        return _position_bytes(entry) >= _position_bytes(present)

    # For those who follow the nodes

    def begin(self, source: Source) -> None:
        """Takes in a source that tells of all changes from now on, in the place of the one that its node had."""
        self.end(source.node)
        self._compare()
        if source.compare(self._snapshot):
            self._sources[source.node] = source

    def source(self, node: str) -> Source | None:
        """The source of a node; None when it has none."""
        self._compare()
        return self._sources.get(node)

    def learn(self, source: Source, news: News, heard_at_s: float) -> None:
        """Takes in what a source tells: drops what has changed, then lets the rest stand up to the new position.

        Args:
            source: whose node it is about.
            news: what it tells.
            heard_at_s: when it was asked.
        """
        if source.ended:
            return
        self._drop(source, news)
        source.head = news.head
        source.heard_at_s = heard_at_s
        if news.coherent is None:
            return
        standing = self._compare().judge(news.coherent)
        if standing is Standing.LOST:
            self.end(source.node)
        elif standing is Standing.GOOD:
            source.advance(news.coherent)
            position = source.lsn()
            source.fresh_at_s = None if position is None else self._as_of_s(position)

    def end(self, node: str) -> None:
        """Forgets what a node has answered: nobody tells of its changes any more."""
        source = self._sources.pop(node, None)
        if source is not None:
            source.ended = True
            dropped = self._entries.drop_where(lambda entry: entry.source is source)
            CACHE_DROPPED.count("node", by=dropped)

    def observe(self) -> Observed:
        """Gauges: entries, bytes, and how old each node's coherent position is."""

        def sample() -> Iterable[Sample]:
            now_s = self._clock()
            yield "atelier_cache_entries", {}, len(self._entries)
            yield "atelier_cache_bytes", {}, self._entries.size_bytes
            for source in self._sources.values():
                lag_ms = source.lag_ms_at(now_s)
                if lag_ms is not None:
                    yield "atelier_cache_coherence_seconds", {"node": source.node}, lag_ms / 1000

        return Observed(_GAUGES, sample)

    def _drop(self, source: Source, news: News) -> None:
        def is_of_source(entry: Entry) -> bool:
            return entry.source is source

        dropped = 0
        if news.replaced:
            dropped += self._entries.drop_where(is_of_source)
            self._soil(source, [flight for flights in self._flying.values() for flight in flights])
        for shelf in {*news.changed, *((PAGES,) if news.changed else ())}:
            dropped += self._entries.drop_shelf(shelf, is_of_source)
            self._soil(source, self._flying.get(shelf, ()))
        for shelf in {*news.stocked}:
            dropped += self._entries.drop_shelf(shelf, lambda entry: entry.source is source and shows_stock(entry.key))
            self._soil(source, self._flying.get(shelf, ()), stock_only=True)
        if dropped:
            CACHE_DROPPED.count("changed", by=dropped)

    def _soil(self, source: Source, flights: Iterable[Flight], *, stock_only: bool = False) -> None:
        for flight in flights:
            if not stock_only or shows_stock(flight.key):
                flight.dirty.add(source)

    def _compare(self) -> ClusterSnapshot:
        """The newest snapshot; what it is the end of has ended then."""
        before, snapshot = self._snapshot, self._look()
        if snapshot is before:
            return snapshot
        self._snapshot = snapshot
        is_new = snapshot.generation != before.generation or snapshot.history != before.history
        for source in tuple(self._sources.values()):
            if is_new or not source.compare(snapshot):
                self.end(source.node)
        return snapshot


def _why_not(entry: Entry, ask: Ask, snapshot: ClusterSnapshot, lag_ms: float | None) -> str | None:
    """Why an entry that its source vouches for is not good enough, in a word that is counted by; None when it is."""
    token, policy = ask.token, ask.policy
    if token is not None:
        if snapshot.judge(token) is not Standing.GOOD:
            return "history"
        if policy.consistency != "eventual" and token.lsn.bytes > _position_bytes(entry):
            return "behind"
    if policy.consistency != "causal" and (lag_ms is None or lag_ms > policy.max_lag_ms):
        return "bound"
    return None


def _reach_bytes(snapshot: ClusterSnapshot) -> int:
    """A position that all replicas have replayed; -1 when there is none that was observed."""
    return min((node.observation.replayed_lsn.bytes for node in snapshot.replicas if node.observation), default=-1)


def _token_of(entry: Entry, sent: CausalToken | None) -> CausalToken:
    """The token of an answer from memory: a position that covers what it shows, and what was sent.

    For who sends none it is the one that all of the node's entries stand at, so that its text is at hand. Who sends one
    reads on with it, and gets the lowest that will do: it finds more in memory.
    """
    seen, coherent = entry.token, entry.source.coherent
    if sent is not None:
        return sent.merge(seen)
    if coherent is not None and coherent.timeline == seen.timeline and coherent.lsn.bytes >= seen.lsn.bytes:
        return coherent
    return seen


def _position_bytes(entry: Entry) -> int:
    """Up to where an entry shows all that there is to show."""
    return max(entry.source.coherent_bytes, entry.covered_bytes)


def _tells_of(source: Source, flight: Flight, observed: Observation) -> bool:
    """Whether a source has seen all changes since a read began, on the server start that was read from."""
    return (
        not source.ended
        and source in flight.sources
        and source not in flight.dirty
        and source.started_at == observed.started_at
    )
