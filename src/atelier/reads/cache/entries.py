"""What is kept, within a bound in bytes: the answers used last, and which of them a change touches. Pure."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from atelier.reads.cache.source import Source
from atelier.token import CausalToken

# A statement's name, the id or offset it was asked for, and what else it was asked with.
Key: TypeAlias = tuple[str, int, *tuple[object, ...]]

# Pages show many products; they stand together where no product has its place, because ids begin at 1.
PAGES = 0
_PAGED = frozenset({"list_documented", "list_live"})
_SHOWING_STOCK = frozenset({"styles_documented", "styles_live"})

# An entry with its key, its token and its places in the tables, beside the body: a test holds it against what the
# interpreter takes.
OVERHEAD_BYTES = 1_200
# So many keys of one shelf stand in a tuple, which is small; more of them in a set.
_FEW = 8


def shelf_of(key: Key) -> int:
    """Which changes touch an answer: those of one product, or, for a page, those of any."""
    return PAGES if key[0] in _PAGED else key[1]


def shows_stock(key: Key) -> bool:
    """Whether an answer shows quantities."""
    return key[0] in _SHOWING_STOCK


@dataclass(slots=True, eq=False)
class Entry:
    """One finished answer.

    Attributes:
        key: what was asked.
        body: JSON, as PostgreSQL formed it.
        tag: its strong entity tag.
        links: the `Link` header; None for no list.
        token: what the answer may have seen when it was read.
        covered_bytes: a position that its node had replayed before it was read.
        source: what tells of its node's changes since.
    """

    key: Key
    body: bytes
    tag: str
    links: str | None
    token: CausalToken
    covered_bytes: int
    source: Source
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        """Notes what it takes."""
        self.size_bytes = OVERHEAD_BYTES + len(self.body) + len(self.tag) + len(self.links or "")


class Entries:
    """The entries of one process, by key and by shelf; the one that was used longest ago gives way first."""

    def __init__(self, capacity_bytes: int) -> None:
        """Takes the bound."""
        self._capacity_bytes = capacity_bytes
        self._by_key: OrderedDict[Key, Entry] = OrderedDict()
        self._shelves: dict[int, tuple[Key, ...] | set[Key]] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._by_key)

    def __iter__(self) -> Iterator[Entry]:
        """All, the one used longest ago first."""
        return iter(self._by_key.values())

    def get(self, key: Key) -> Entry | None:
        """The entry of a key; None when there is none."""
        return self._by_key.get(key)

    def touch(self, key: Key) -> None:
        """Notes that an entry was used."""
        self._by_key.move_to_end(key)

    def put(self, entry: Entry) -> int:
        """Keeps an entry in the place of what has its key; returns how many others gave way.

        An answer so large that it would take the place of many is not kept.
        """
        self.drop(entry.key)
        if entry.size_bytes * 8 > self._capacity_bytes:
            return 0
        self._by_key[entry.key] = entry
        self._shelve(entry.key)
        self.size_bytes += entry.size_bytes
        evicted = 0
        while self.size_bytes > self._capacity_bytes:
            self.drop(next(iter(self._by_key)))
            evicted += 1
        return evicted

    def drop(self, key: Key) -> None:
        """Forgets the entry of a key, if there is one."""
        entry = self._by_key.pop(key, None)
        if entry is not None:
            self.size_bytes -= entry.size_bytes
            self._unshelve(key)

    def drop_shelf(self, shelf: int, suits: Callable[[Entry], bool]) -> int:
        """Forgets the entries of a shelf that suit; returns how many."""
        return self._drop_all(tuple(self._shelves.get(shelf, ())), suits)

    def drop_where(self, suits: Callable[[Entry], bool]) -> int:
        """Forgets all entries that suit; returns how many."""
        return self._drop_all(tuple(self._by_key), suits)

    def _drop_all(self, keys: tuple[Key, ...], suits: Callable[[Entry], bool]) -> int:
        dropped = 0
        for key in keys:
            if suits(self._by_key[key]):
                self.drop(key)
                dropped += 1
        return dropped

    def _shelve(self, key: Key) -> None:
        """Puts a key on its shelf: products have a handful, pages any number."""
        shelf = shelf_of(key)
        keys = self._shelves.get(shelf, ())
        if isinstance(keys, set):
            keys.add(key)
        elif len(keys) < _FEW:
            self._shelves[shelf] = (*keys, key)
        else:
            self._shelves[shelf] = {*keys, key}

    def _unshelve(self, key: Key) -> None:
        shelf = shelf_of(key)
        keys = self._shelves[shelf]
        if isinstance(keys, set):
            keys.remove(key)
        else:
            keys = self._shelves[shelf] = tuple(other for other in keys if other != key)
        if not keys:
            del self._shelves[shelf]
