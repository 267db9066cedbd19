"""A cluster of this folder's own: imports replace the whole catalogue, and would pull it away under other tests."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.loading.export import ExportNode, export_catalogue
from atelier.loading.files import find_files
from atelier.loading.importer import ImportOptions, import_catalogue
from atelier.loading.progress import Report, Silent
from tests.support import role_dsn, running_cluster


class Told(Silent):
    """Keeps the lines that an import says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@dataclass
class Database:
    """A primary whose catalogue may be replaced at any time."""

    cluster: EmbeddedCluster
    told: Told = field(default_factory=Told)

    @property
    def dsn(self) -> str:
        return role_dsn(self.cluster, "migrator")

    def load(self, folder: Path, **options: Any) -> Report:
        """Imports a folder."""
        self.told = Told()
        return asyncio.run(self.load_async(folder, **options))

    async def load_async(self, folder: Path, **options: Any) -> Report:
        """Imports a folder, inside a running loop."""
        return await import_catalogue(
            find_files([folder]), self.dsn, options=ImportOptions(**options), watcher=self.told, clock=time.monotonic
        )

    def start(self, folder: Path, **options: Any) -> "asyncio.Task[Report]":
        """Begins an import; what it says comes into a fresh list."""
        self.told = Told()
        return asyncio.create_task(self.load_async(folder, **options))

    def export(self, folder: Path) -> Path:
        """Exports into a folder, from the primary."""
        node = ExportNode("pg1", role_dsn(self.cluster, "reader"), replica=False)
        asyncio.run(export_catalogue(folder, [node], watcher=Silent()))
        return folder

    def fetch(self, query: str, *arguments: object, role: str = "migrator") -> list[asyncpg.Record]:
        """Runs one statement."""
        return asyncio.run(self._fetch(query, arguments, role))

    def value(self, query: str, *arguments: object) -> Any:
        """The single value of a query."""
        return self.fetch(query, *arguments)[0][0]

    async def _fetch(self, query: str, arguments: tuple[object, ...], role: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(role_dsn(self.cluster, role))
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def import_cluster() -> Iterator[EmbeddedCluster]:
    """One primary."""
    with running_cluster(replicas=0) as cluster:
        yield cluster


@pytest.fixture
def database(import_cluster: EmbeddedCluster) -> Database:
    """The primary, with whatever catalogue the last test left."""
    return Database(import_cluster)
