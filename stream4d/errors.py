"""Every error that stream4d raises on purpose.

::

    Stream4DError
    ├── ConfigError               a setting, flag or preset that makes no sense
    ├── VideoError                the source cannot be opened or decoded
    ├── ModelError                an unknown model, or one that cannot do what was asked
    │   └── WeightsError          a checkpoint that does not fit its model, or is not safe to read
    ├── StoreError                a store that cannot be opened, written or resumed
    │   └── StoreCompleteError    a store that is complete: there is nothing to resume
    ├── ExportError               a result that cannot be written in the format asked for
    ├── EvaluationError           ground truth that is missing or malformed
    ├── TrainingError             a training run that cannot start or go on
    └── MissingDependencyError    an optional package is needed and not installed

A message says what happened, with which value, and what to do. The command line catches the root once,
prints the message on one line and exits with status 1; anything else keeps its traceback.
"""

from __future__ import annotations


class Stream4DError(Exception):
    """Root of all errors that stream4d raises on purpose."""


class ConfigError(Stream4DError):
    """A setting, flag or preset that makes no sense."""


class VideoError(Stream4DError):
    """The source cannot be opened or decoded."""


class ModelError(Stream4DError):
    """An unknown model, or one that cannot do what was asked of it."""


class WeightsError(ModelError):
    """A checkpoint that does not fit its model, or is not safe to read."""


class StoreError(Stream4DError):
    """A store that cannot be opened, written or resumed."""


class StoreCompleteError(StoreError):
    """A store that is complete: there is nothing to resume."""


class ExportError(Stream4DError):
    """A result that cannot be written in the format asked for."""


class EvaluationError(Stream4DError):
    """Ground truth that is missing or malformed."""


class TrainingError(Stream4DError):
    """A training run that cannot start or go on."""


class MissingDependencyError(Stream4DError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, *, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}: "
            f"install it with `pip install 'stream4d[{extra}]'`"
        )
