"""What a checker found. Three values: a history that shows too little is neither valid nor invalid."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What is known of a guarantee after a run."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The finding of one checker.

    Attributes:
        guarantee: the name of the checker.
        state: valid, invalid or unknown.
        looked_at: how many facts could have broken the guarantee.
        witness: in words: what broke it, or why nothing can be said; empty when valid and nothing is to be told.
        ops: the numbers of the operations that the witness is about.
        also: how many more breaks were found.
        only_reported: it tells of a documented property, and decides nothing.
    """

    guarantee: str
    state: State
    looked_at: int
    witness: str = ""
    ops: tuple[int, ...] = ()
    also: int = 0
    only_reported: bool = False

    @property
    def breaks(self) -> int:
        """How often the guarantee was broken."""
        return self.also + 1 if self.state is State.INVALID else 0

    def document(self) -> dict[str, object]:
        """For `summary.json`."""
        return {
            "guarantee": self.guarantee,
            "state": self.state.value,
            "looked_at": self.looked_at,
            "witness": self.witness,
            "ops": list(self.ops),
            "also": self.also,
            "only_reported": self.only_reported,
        }


class Finding:
    """Collects what one checker sees; keeps the smallest witness alone, so that it never grows."""

    def __init__(self, guarantee: str) -> None:
        """Nothing was seen yet."""
        self._guarantee = guarantee
        self._witness = ""
        self._ops: tuple[int, ...] = ()
        self._doubt = ""
        self.breaks = 0
        self.looked_at = 0

    def look(self, facts: int = 1) -> None:
        """Counts facts that could have broken the guarantee."""
        self.looked_at += facts

    def broke(self, witness: str, *ops: int) -> None:
        """The guarantee is broken: in words, and by which operations. The shortest account of a break is kept."""
        self.breaks += 1
        ops = tuple(sorted(set(ops)))
        if not self._witness or (len(ops), max(ops, default=0)) < (len(self._ops), max(self._ops, default=0)):
            self._witness, self._ops = witness, ops

    def doubt(self, reason: str) -> None:
        """Something that is needed is missing; the first reason is kept."""
        self._doubt = self._doubt or reason

    def verdict(self) -> Verdict:
        """A break is a break, whatever is missing; without one, anything missing leaves it unknown."""
        if self.breaks:
            return Verdict(
                self._guarantee, State.INVALID, self.looked_at, self._witness, self._ops, also=self.breaks - 1
            )
        if self._doubt:
            return Verdict(self._guarantee, State.UNKNOWN, self.looked_at, self._doubt)
        if not self.looked_at:
            return Verdict(self._guarantee, State.UNKNOWN, 0, "the history shows nothing that could have broken it")
        return Verdict(self._guarantee, State.VALID, self.looked_at)
