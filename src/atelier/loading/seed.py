"""The demo catalogue: a few dozen products of the project's own, for a database that has none."""

from collections.abc import Callable
from pathlib import Path

from atelier.deadline import Clock
from atelier.loading.files import find_files
from atelier.loading.importer import ImportOptions, import_catalogue
from atelier.loading.progress import Report, Silent

DEMO_FOLDER = Path(__file__).with_name("demo")


async def load_demo(dsn: str, *, say: Callable[[str], None], clock: Clock) -> Report:
    """Loads the demo catalogue if and only if the database has no products.

    Args:
        dsn: of the primary, as role `migrator`.
        say: told what was done, in one line.
        clock: monotonic, in seconds.

    Returns:
        What was done; `catalogue_id` is None when a catalogue was there already.

    Raises:
        AtelierError: it could not be loaded; the database is as it was.
    """
    options = ImportOptions(only_if_empty=True, strict=True, origin="demo")
    report = await import_catalogue(find_files([DEMO_FOLDER]), dsn, options=options, watcher=Silent(), clock=clock)
    if report.catalogue_id:
        say(f"demo catalogue loaded: {report.files['product'].loaded} products")
    return report
