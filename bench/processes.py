"""Who on this machine uses how much: processor time and memory, by process and, in PostgreSQL, by what it does."""

import resource
from collections.abc import Iterator, Mapping
from contextlib import suppress

import psutil

from bench.stand import Running, Stand

GENERATOR = "wrk"
# How PostgreSQL's processes call themselves after `postgres: NODE: `; a role's name is that of a backend.
_DOINGS = {"startup": "replay", "walsender": "log out", "walreceiver": "log in"}
_ROLES = ("reader", "writer", "monitor", "migrator", "postgres")


def cpu_seconds(stand: Stand, services: Mapping[str, Running]) -> dict[str, float]:
    """Processor time used until now, in seconds: of services by process, of nodes by what they do, of the generator.

    Only differences mean anything. The generator's counts once it has ended.
    """
    used: dict[str, float] = {}
    for name, process in find_processes(stand, services):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used[name] = used.get(name, 0.0) + times.user + times.system
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {**used, GENERATOR: ended.ru_utime + ended.ru_stime}


def memory_mib(stand: Stand, services: Mapping[str, Running]) -> dict[str, float]:
    """What processes hold in MiB; of what several share, each counts its part."""
    held: dict[str, float] = {}
    for name, process in find_processes(stand, services):
        with suppress(psutil.NoSuchProcess):
            whose = name.split(", ")[0] if name.startswith("PostgreSQL") else name
            held[whose] = held.get(whose, 0.0) + process.memory_full_info().pss / 2**20
    return held


def find_processes(stand: Stand, services: Mapping[str, Running]) -> Iterator[tuple[str, psutil.Process]]:
    """Every process with the name that it is counted under."""
    for name, running in services.items():
        first, *workers = running.processes()
        yield f"{name}, first process", first
        yield from ((f"{name}, worker", worker) for worker in workers)
    for name, node in stand.cluster.nodes.items():
        server = node.running()
        if server is not None:
            yield f"PostgreSQL {name}, rest", server.process
            for process in server.process.children():
                with suppress(psutil.NoSuchProcess):
                    yield f"PostgreSQL {name}, {name_doing(' '.join(process.cmdline()))}", process


def name_doing(title: str) -> str:
    """What a server's process does, by its title: `postgres: pg2: reader atelier 127.0.0.1(5000) idle`."""
    word = (title.removeprefix("postgres: ").partition(": ")[2].split() or [""])[0]
    return "backends" if word in _ROLES else _DOINGS.get(word, "rest")


def subtract(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """What was used between two looks."""
    return {name: used - before.get(name, 0.0) for name, used in after.items()}


def total(used: Mapping[str, float], *, of: str = "", doing: str = "") -> float:
    """The sum of those whose names begin and end so."""
    return sum(value for name, value in used.items() if name.startswith(of) and name.endswith(doing))
