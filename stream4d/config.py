"""Settings of a run: frozen dataclasses, defaults in the class, a sentence and a range check per field.

Order of precedence: defaults < ``--config`` (a preset name or a YAML file) < flags. An unknown key is an error
that names the nearest valid one. ``dump`` and ``load`` round-trip; the resolved config is written into the store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from stream4d.errors import ConfigError

T = TypeVar("T")


def _setting(default: Any, doc: str, *, low: float | None = None, high: float | None = None) -> Any:
    """Declare a field with its sentence for ``--help`` and its allowed range."""
    return field(default=default, metadata={"doc": doc, "low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """Base of all config parts: checks every range and choice on construction."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            object.__setattr__(self, f.name, _coerce(f.name, value, hints[f.name]))
            _check_range(f, getattr(self, f.name))


def _check_range(f: dataclasses.Field[Any], value: Any) -> None:
    low, high = f.metadata.get("low"), f.metadata.get("high")
    if value is None or not isinstance(value, int | float):
        return
    if (low is not None and value < low) or (high is not None and value > high) or value != value:
        bounds = f"at least {low}" if high is None else f"between {low} and {high:.10g}"
        raise ConfigError(f"{f.name} must be {bounds}, got {value}")


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """Fit a YAML or command-line value to the field's type, or say why it does not fit."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(name, value, next(a for a in args if a is not type(None)))
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{name} must be one of {', '.join(map(str, args))}; got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or any(
            isinstance(v, bool) or not isinstance(v, int | float) for v in value
        ):
            raise ConfigError(f"{name} must be a list of numbers, got {value!r}")
        return tuple(float(v) for v in value)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{name} must be a group of keys, got {value!r}")
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 takes 1e-3 for text
        with contextlib.suppress(ValueError):
            return float(value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    ):
        raise ConfigError(f"{name} must be {hint.__name__}, got {value!r}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderConfig(_Checked):
    """Which frames are read, and how they are prepared."""

    resolution: int = _setting(
        384, "long side of the processed frames at most, pixels", low=64, high=4096
    )
    start: float = _setting(0.0, "skip this many seconds", low=0, high=1e9)
    end: float | None = _setting(None, "stop at this many seconds", low=0, high=1e9)
    stride: int = _setting(1, "take every n-th frame", low=1)
    fps: float | None = _setting(
        None, "take frames at about this rate (wins over stride)", low=0.01, high=1e6
    )
    max_frames: int | None = _setting(None, "stop after this many frames", low=1)
    backend: Literal["auto", "pyav", "decord"] = _setting("auto", "decoder for video files")
    intrinsics: tuple[float, ...] | None = _setting(
        None, "fx, fy, cx, cy in pixels of the source image (as decoded, after rotation)"
    )
    distortion: tuple[float, ...] | None = _setting(
        None, "OpenCV lens distortion k1, k2, p1, p2[, k3]; frames are undistorted"
    )
    queue: int = _setting(8, "frames decoded ahead of the model", low=1, high=256)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowConfig(_Checked):
    """How many frames a model sees together. 0: the model's own default."""

    size: int = _setting(0, "frames per window (0: as the model has it)", low=0, high=512)
    overlap: int = _setting(
        -1, "frames shared by neighbouring windows (-1: as the model has it)", low=-1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainConfig(_Checked):
    """The pose chain (docs/architecture.md)."""

    keyframes: int = _setting(10, "keyframes in the bundle-adjustment window", low=3, high=64)
    patches: int = _setting(96, "patches tracked per keyframe", low=8, high=1024)
    lag: int = _setting(8, "frames held back so that their pose is refined once", low=0, high=256)
    refine_focal: bool = _setting(True, "estimate the focal length where no K is given")
    loop_closure: bool = _setting(True, "know places again and take the drift out of the path")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig(_Checked):
    """What is written to the zarr store."""

    maps: Literal["all", "geometry", "none"] = _setting(
        "all", "dense maps kept: all, geometry (rgb, depth, confidence, motion), or none (poses)"
    )
    depth_dtype: Literal["float16", "float32"] = _setting("float16", "precision of stored depth")
    compression: int = _setting(1, "zstd level", low=0, high=22)
    state_every: int = _setting(
        64, "frames between snapshots that --resume starts from", low=1, high=100000
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewConfig(_Checked):
    """The Rerun view."""

    mode: Literal["none", "native", "web"] = _setting("none", "open a live view")
    save_rrd: str | None = _setting(None, "also write a Rerun recording to this file")
    host: str = _setting("127.0.0.1", "address the web viewer listens on")
    port: int = _setting(9090, "port of the web viewer", low=0, high=65535)
    max_points: int = _setting(400_000, "points kept in the static cloud", low=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(_Checked):
    """Which model predicts."""

    name: str = _setting("classical", "model, see `stream4d models`")
    weights: str | None = _setting(None, "checkpoint file or Hugging Face id (default: shipped)")
    device: str = _setting("auto", "auto, cpu, cuda, cuda:1, mps …")
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"doc": "options of the model's own config"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(_Checked):
    """Everything that determines a result, apart from the video."""

    reader: ReaderConfig = field(default_factory=ReaderConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    chain: ChainConfig = field(default_factory=ChainConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    tracks: int = _setting(
        0, "points followed at a time: 2D and 3D tracks (0: none)", low=0, high=10000
    )
    seed: int = _setting(0, "seed of everything random", low=0, high=2**32 - 1)
    threads: int = _setting(0, "CPU threads (0: all cores)", low=0, high=1024)


def dump(config: Any) -> dict[str, Any]:
    """Turn a config into plain YAML-able data."""
    return dataclasses.asdict(config)


def merge(config: T, values: Mapping[str, Any], *, where: str = "config") -> T:
    """Return ``config`` with nested ``values`` replaced.

    Raises:
        ConfigError: unknown key (names the nearest), wrong type or out of range.
    """
    known = {f.name: f for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in {where}.{_nearest(key, known)}")
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}.{key} must be a group of keys, got {value!r}")
            changes[key] = merge(current, value, where=f"{where}.{key}")
        else:
            changes[key] = value
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}"


def bundled(installed: str, in_repository: str) -> Path:
    """Return a data folder: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parent
    folder = package / installed
    return folder if folder.is_dir() else package.parent / in_repository


def preset_folder() -> Path:
    """Return the folder of the YAML presets."""
    return bundled("presets", "configs")


def load(name_or_path: str | Path, base: RunConfig | None = None) -> RunConfig:
    """Read a preset (``fast``, ``balanced``, ``quality``) or a YAML file over ``base``.

    Raises:
        ConfigError: no such preset or file, not YAML, unknown key, bad value.
    """
    import yaml

    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        path = preset_folder() / f"{name_or_path}.yaml"
    if not path.is_file():
        presets = ", ".join(sorted(p.stem for p in preset_folder().glob("*.yaml")))
        raise ConfigError(f"no config {str(name_or_path)!r}: give a YAML file or one of {presets}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read config {path}: {reason}") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"config {path} must hold keys and values, got {type(values).__name__}")
    return merge(base or RunConfig(), values or {}, where=path.name)
