"""A video of a moving world in, a 4D scene out, while it plays.

::

    import stream4d

    for frame in stream4d.reconstruct("video.mp4", out="video.zarr"):
        print(frame.index, frame.world_from_cam)

    store = stream4d.open_store("video.zarr")
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from stream4d._version import __version__

if TYPE_CHECKING:
    from stream4d.config import RunConfig
    from stream4d.models.registry import create_model, list_models
    from stream4d.pipeline import Reconstruction, reconstruct
    from stream4d.store.reader import open_store

__all__ = [
    "Reconstruction",
    "RunConfig",
    "__version__",
    "create_model",
    "list_models",
    "open_store",
    "reconstruct",
]

# Public names are imported when first used, so that `import stream4d` and `stream4d --help` stay instant.
_HOMES = {
    "Reconstruction": "stream4d.pipeline",
    "RunConfig": "stream4d.config",
    "create_model": "stream4d.models.registry",
    "list_models": "stream4d.models.registry",
    "open_store": "stream4d.store.reader",
    "reconstruct": "stream4d.pipeline",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
