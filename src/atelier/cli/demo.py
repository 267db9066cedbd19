"""How `atelier up` gives an empty database the demo catalogue."""

import asyncio
import time
from collections.abc import Callable, Mapping
from urllib.parse import quote

from atelier.cli.database import find_primary, password_of
from atelier.loading.seed import load_demo
from atelier.settings import Settings


def load_demo_catalogue(environ: Mapping[str, str], *, say: Callable[[str], None]) -> None:
    """Loads the demo catalogue if the database has no products, and says so.

    Raises:
        AtelierError: there is no primary, or the catalogue could not be loaded.
    """
    asyncio.run(_load(environ, say))


async def _load(environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    settings = Settings.from_environment(environ)
    address = await find_primary(settings)
    password = quote(password_of(environ, "migrator"), safe="")
    dsn = f"postgresql://migrator:{password}@{address.host}:{address.port}/{settings.database}"
    await load_demo(dsn, say=say, clock=time.monotonic)
