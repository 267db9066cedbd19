"""`atelier import`, `atelier generate` and `atelier export`."""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import click

from atelier.cli.database import look, password_of
from atelier.cli.options import data_dir_option, find_environment, tell
from atelier.cli.progress import show_progress, show_report
from atelier.errors import PrimaryUnavailableError
from atelier.loading.export import ExportNode, export_catalogue
from atelier.loading.files import find_files
from atelier.loading.generate import generate_catalogue
from atelier.loading.importer import ImportOptions, import_catalogue
from atelier.loading.layout import LAYOUTS
from atelier.settings import NodeAddress, Settings

_Command = TypeVar("_Command", bound=Callable[..., Any])
_T = TypeVar("_T")
_INTERRUPTED = 130
_PATH = click.Path(path_type=Path)


def _file_options(command: _Command) -> _Command:
    for layout in reversed(LAYOUTS):
        text = f"The {layout.title} file, whatever its name."
        command = click.option(f"--{layout.title}", f"file_{layout.title}", type=_PATH, help=text)(command)
    return command


@click.command("import")
@click.argument("paths", nargs=-1, type=_PATH)
@_file_options
@click.option("--strict", is_flag=True, help="End at the first row that is refused; nothing is changed then.")
@click.option("--dry-run", is_flag=True, help="Only report what would be refused.")
@click.option(
    "--rejects", type=_PATH, default=Path("rejects.csv"), show_default=True, help="Where the refused rows are listed."
)
@data_dir_option
def import_(
    *, paths: tuple[Path, ...], strict: bool, dry_run: bool, rejects: Path, data_dir: Path, **named: Path | None
) -> None:
    """Replace the catalogue by the one in six CSV files: a folder, or the files one by one.

    Readers see the old catalogue or the new one, never a mixture. Rows that do not fit are refused and listed.
    """
    chosen = {title.removeprefix("file_"): path for title, path in named.items() if path}
    files = find_files(paths, chosen)
    environ = find_environment(data_dir)
    options = ImportOptions(strict=strict, trial=dry_run, rejects=rejects, origin=_origin(files))
    with show_progress() as watcher:
        report = _run(
            _with_primary(
                environ,
                lambda dsn: import_catalogue(files, dsn, options=options, watcher=watcher, clock=time.monotonic),
            ),
            interrupted="interrupted; the old catalogue is untouched",
        )
    show_report(report)


@click.command()
@click.argument("folder", type=_PATH)
@click.option("--products", type=click.IntRange(1, 100_000_000), default=1_000, show_default=True, help="How many.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed makes the same files.")
@click.option("--dirty", is_flag=True, help="With every known fault, and expected-rejects.csv beside the files.")
def generate(*, folder: Path, products: int, seed: int, dirty: bool) -> None:
    """Make a catalogue of any size in the same CSV form, with the proportions of a real one."""
    started_s = time.monotonic()
    try:
        rows = generate_catalogue(folder, products=products, seed=seed, dirty=dirty)
    except KeyboardInterrupt:
        _end_interrupted("interrupted; the files are incomplete")
    elapsed_s = time.monotonic() - started_s
    click.echo(f"{', '.join(f'{count} {title}' for title, count in rows.items())} in {elapsed_s:.1f} s")


@click.command()
@click.argument("folder", type=_PATH)
@data_dir_option
def export(*, folder: Path, data_dir: Path) -> None:
    """Write the present catalogue as six clean CSV files, read from a replica in one snapshot."""
    environ = find_environment(data_dir)
    with show_progress() as watcher:
        node = _run(_export(environ, folder, watcher), interrupted="interrupted; nothing was written")
    click.echo(f"exported from {node} to {folder}")


async def find_primary_dsn(environ: Mapping[str, str]) -> str:
    """Finds the primary, and how the migrator connects to it.

    Raises:
        AtelierError: there is no primary, or the environment does not say enough.
    """
    settings = Settings.from_environment(environ)
    snapshot = await look(settings, lambda seen: seen.primary is not None)
    if snapshot.primary is None:
        raise PrimaryUnavailableError("no node is the primary, or it does not answer")
    return _dsn(snapshot.primary.address, "migrator", password_of(environ, "migrator"), settings.database)


async def _with_primary(environ: Mapping[str, str], work: Callable[[str], Coroutine[Any, Any, _T]]) -> _T:
    return await work(await find_primary_dsn(environ))


async def _export(environ: Mapping[str, str], folder: Path, watcher: Any) -> str:
    settings = Settings.from_environment(environ)
    snapshot = await look(settings, lambda seen: seen.primary is not None)
    primary = snapshot.primary.address if snapshot.primary else None
    nodes = [
        ExportNode(node.name, _dsn(node, "reader", settings.reader_password, settings.database), node != primary)
        for node in (state.address for state in snapshot.nodes)
    ]
    return await export_catalogue(folder, nodes, watcher=watcher)


def _dsn(node: NodeAddress, role: str, password: str, database: str) -> str:
    return f"postgresql://{role}:{quote(password, safe='')}@{node.host}:{node.port}/{quote(database, safe='')}"


def _run(work: Coroutine[Any, Any, _T], *, interrupted: str) -> _T:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        _end_interrupted(interrupted)


def _end_interrupted(line: str) -> NoReturn:
    tell(f"atelier: {line}")
    sys.exit(_INTERRUPTED)


def _origin(files: Mapping[str, Path]) -> str:
    """What the catalogue is remembered by: the folder of its products."""
    return files["product"].resolve().parent.name or "import"


def register(group: click.Group) -> None:
    """Adds the commands."""
    for command in (import_, generate, export):
        group.add_command(command)
