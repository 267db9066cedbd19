"""How `atelier up` gives an empty database the demo catalogue."""

from collections.abc import Callable, Mapping


def load_demo_catalogue(environ: Mapping[str, str], *, say: Callable[[str], None]) -> None:
    """Loads the demo catalogue if the database has none."""
