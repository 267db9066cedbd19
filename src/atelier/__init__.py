"""atelier: the catalogue and inventory service of an online shop."""

from importlib.metadata import version

__version__ = version("atelier")
