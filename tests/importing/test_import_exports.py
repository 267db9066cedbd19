"""Exports from replicas: one snapshot, however the catalogue changes meanwhile."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.loading.export import ExportNode, export_catalogue
from atelier.loading.seed import DEMO_FOLDER
from tests.conftest import ClusterFactory
from tests.importing.conftest import Database, Told
from tests.importing.test_import_catalogues import assert_same
from tests.random_catalogue import write_random_catalogue
from tests.support import role_dsn, wait_until

pytestmark = pytest.mark.cluster


def nodes_of(cluster: EmbeddedCluster) -> list[ExportNode]:
    """The primary first: an export has to choose."""
    return [ExportNode(name, role_dsn(cluster, "reader", node=name), name != "pg1") for name in ("pg1", "pg2")]


def catalogue_on(cluster: EmbeddedCluster, node: str) -> int:
    """Which catalogue a node shows; 0 when the question was in the way of its replay."""

    async def ask() -> int:
        connection = await asyncpg.connect(role_dsn(cluster, "reader", node=node))
        try:
            return int(await connection.fetchval("select catalogue_id from current_catalogue"))
        except asyncpg.SerializationError:
            return 0
        finally:
            await connection.close()

    return asyncio.run(ask())


class Meddler(Told):
    """Replaces the catalogue while the second file is about to be written, once."""

    def __init__(self, database: Database, folder: Path) -> None:
        super().__init__()
        self._database = database
        self._folder: Path | None = folder

    def file_began(self, title: str, total_bytes: int) -> None:
        if title != "styles" or self._folder is None:
            return
        folder, self._folder = self._folder, None
        self._replace(folder)

    def _replace(self, folder: Path) -> None:
        # The export's own loop runs in this thread: the import needs another.
        with ThreadPoolExecutor(1) as threads:
            new = threads.submit(self._database.load, folder).result(timeout=60).catalogue_id
            wait_until(
                lambda: threads.submit(catalogue_on, self._database.cluster, "pg2").result(timeout=60) == new,
                what="the replica's replay",
            )


def test_export_takes_a_replica_and_starts_anew_when_replay_cancels_it(
    make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    """What is written is one catalogue as a whole: here the one that came while the first try ran."""
    cluster = make_cluster(replicas=1)
    database = Database(cluster)
    old = database.load(DEMO_FOLDER).catalogue_id
    wait_until(lambda: catalogue_on(cluster, "pg2") == old, what="the replica's replay")
    assert asyncio.run(export_catalogue(tmp_path / "calm", nodes_of(cluster), watcher=Told())) == "pg2"
    assert_same(DEMO_FOLDER, tmp_path / "calm")
    other = write_random_catalogue(tmp_path / "other", seed=6)
    meddler = Meddler(database, other)
    assert asyncio.run(export_catalogue(tmp_path / "torn", nodes_of(cluster), watcher=meddler)) == "pg2"
    assert [line.split(":")[0] for line in meddler.lines] == ["beginning anew"]
    assert_same(other, tmp_path / "torn")
