"""Finds the six files of a catalogue in a folder, or among paths given one by one."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from atelier.errors import AtelierError
from atelier.loading.layout import LAYOUTS

_TITLES = tuple(layout.title for layout in LAYOUTS)


class FilesError(AtelierError):
    """The six files of a catalogue could not be found."""


def find_files(paths: Iterable[Path], named: Mapping[str, Path] | None = None) -> dict[str, Path]:
    """Finds the file for each of the six titles.

    Args:
        paths: folders, or files that are recognised by their names: `photos.csv`, `photosSample.csv`, `products.csv`.
        named: files by title, whatever they are called; they win.

    Returns:
        The path of each file by its title, all six.

    Raises:
        FilesError: one is missing, cannot be read, or two are there for one title.
    """
    found = dict(named or {})
    for path in paths:
        for title, file in _candidates(path):
            if title in (named or {}):
                continue
            if title in found:
                raise FilesError(f"both {found[title].name} and {file.name} could be the {title} file; name one")
            found[title] = file
    if missing := [title for title in _TITLES if title not in found]:
        raise FilesError(f"no file for {', '.join(missing)}; a catalogue has {', '.join(_TITLES)}")
    return {title: _readable(found[title]) for title in _TITLES}


def _candidates(path: Path) -> list[tuple[str, Path]]:
    if not path.exists():
        raise FilesError(f"there is no {path}")
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError as error:
        raise FilesError(f"{path} cannot be read: {error.strerror}") from error
    pairs = [(title, file) for file in files if (title := _title_of(file))]
    if not pairs and not path.is_dir():
        raise FilesError(f"{path.name} has none of the names {', '.join(f'{title}.csv' for title in _TITLES)}")
    return pairs


def _title_of(file: Path) -> str | None:
    name = re.sub(r"_?sample", "", file.name.lower())
    matching = (title for title in _TITLES if name in {f"{title}.csv", f"{title}s.csv", f"{title.rstrip('s')}.csv"})
    return next(matching, None)


def _readable(path: Path) -> Path:
    """Files alone: some are read twice, which pipes cannot be."""
    if path.exists() and not path.is_file():
        raise FilesError(f"{path} is no file")
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise FilesError(f"{path} cannot be read: {error.strerror}") from error
    return path
