"""How `atelier up` gives an empty database the demo catalogue."""

import asyncio
import time
from collections.abc import Callable, Mapping

from atelier.cli.catalogue import find_primary_dsn
from atelier.loading.seed import load_demo


def load_demo_catalogue(environ: Mapping[str, str], *, say: Callable[[str], None]) -> None:
    """Loads the demo catalogue if the database has none."""
    asyncio.run(_load(environ, say))


async def _load(environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    await load_demo(await find_primary_dsn(environ), say=say, clock=time.monotonic)
