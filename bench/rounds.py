"""Things that are compared take turns, round after round: a machine that changes its mood changes it for all."""

from collections.abc import Callable, Mapping
from typing import TypeVar

Seen = TypeVar("Seen")


def take_turns(
    rounds: int, measures: Mapping[str, Callable[[], Seen]], *, prepare: Callable[[], object] = lambda: None
) -> dict[str, list[Seen]]:
    """Measures everything once a round, each round beginning with another one.

    Args:
        rounds: how many.
        measures: what is measured, by name.
        prepare: called before each round, outside all that is measured.

    Returns:
        What was seen under each name, by round.
    """
    seen: dict[str, list[Seen]] = {name: [] for name in measures}
    names = list(measures)
    for number in range(rounds):
        prepare()
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seen[name].append(measures[name]())
    return seen
