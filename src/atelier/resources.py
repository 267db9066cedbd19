"""Where the files that are not Python live: inside an installed wheel, or at the top of a checkout."""

from pathlib import Path

from atelier.errors import AtelierError

_PACKAGE = Path(__file__).resolve().parent


class ResourceMissingError(AtelierError):
    """A folder that belongs to the installation is missing."""


def resource_dir(name: str) -> Path:
    """Finds a top-level folder of the project, such as `migrations` or `replication`.

    Args:
        name: the folder's name at the top of the repository.

    Returns:
        The folder in the wheel (`atelier/bundled/<name>`) or, in an editable installation, in the checkout.

    Raises:
        ResourceMissingError: the installation is damaged.
    """
    for folder in (_PACKAGE / "bundled" / name, _PACKAGE.parent.parent / name):
        if folder.is_dir():
            return folder
    raise ResourceMissingError(f"the installation has no folder {name!r}; install atelier again")
