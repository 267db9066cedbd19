"""What the embedded cluster refuses or fails at, each with one line for a person."""

from atelier.errors import AtelierError


class EmbeddedError(AtelierError):
    """The embedded cluster could not do what was asked."""


class DataFolderError(EmbeddedError):
    """The data folder cannot be used."""


class BusyError(EmbeddedError):
    """Another command is working on this data folder."""


class PortTakenError(EmbeddedError):
    """Somebody else listens on the node's port."""
