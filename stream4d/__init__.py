"""A video of a moving world in, a 4D scene out, while it plays."""

from stream4d._version import __version__

__all__ = ["__version__"]
