"""Reads single values from the environment: by value, or a secret from the file that `NAME_FILE` names."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from atelier.errors import SettingsError

_T = TypeVar("_T")


class Environment:
    """Reads values by name, refuses wrong ones with one line, and remembers which names are known."""

    def __init__(self, environ: Mapping[str, str], *, others: frozenset[str]) -> None:
        """Takes the variables, and the names of those that are for others to read."""
        self._environ = environ
        self._known = set(others)

    def text(self, name: str, default: str | None = None, *, secret: bool = False) -> str:
        """The text of a variable, or its default; without one it must be set. Raises SettingsError."""
        self._known.add(name)
        value = self._environ.get(name)
        if value is None and secret:
            value = self._from_file(f"{name}_FILE")
        if value is None:
            if default is None:
                raise SettingsError(f"{name} is not set")
            return default
        return value

    def read(self, name: str, parse: Callable[[str], _T], default: str | None = None, *, secret: bool = False) -> _T:
        """What a parser makes of a variable; its ValueError becomes a SettingsError with the name in front."""
        value = self.text(name, default, secret=secret)
        try:
            return parse(value)
        except ValueError as error:
            raise SettingsError(f"{name} {error}") from error

    def file_of(self, name: str) -> Path | None:
        """The file that holds a value; None when the environment names none."""
        path = self._environ.get(f"{name}_FILE")
        return Path(path) if path is not None else None

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number within bounds. Raises SettingsError."""
        value = self.text(name, str(default))
        if not re.fullmatch(r"\d{1,15}", value, re.ASCII) or not low <= int(value) <= high:
            raise SettingsError(f"{name} takes a whole number from {low} to {high}, not {value!r}")
        return int(value)

    def choice(self, name: str, choices: tuple[_T, ...], default: str) -> _T:
        """One of several words. Raises SettingsError."""
        value = self.text(name, default)
        for choice in choices:
            if choice == value:
                return choice
        raise SettingsError(f"{name} takes one of {', '.join(map(str, choices))}, not {value!r}")

    def refuse_unknown(self) -> None:
        """Raises SettingsError for a name that nobody reads: misspelt, it would leave a default in force silently."""
        for name in sorted(self._environ):
            if name.startswith("ATELIER_") and name.removesuffix("_FILE") not in self._known:
                raise SettingsError(f"{name} is no setting of atelier")

    def _from_file(self, name: str) -> str | None:
        path = self._environ.get(name)
        return None if path is None else read_secret(Path(path), name)


def read_secret(path: Path, name: str) -> str:
    """The text of a file that a variable names, without white space around it.

    Raises:
        SettingsError: it cannot be read, or is no text; the message names the variable.
    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name} cannot be read: it is not UTF-8") from error
