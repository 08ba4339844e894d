"""Make a checkpoint ready for the package: half precision, provenance in the metadata, checked by loading it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stream4d._version import __version__
from stream4d.errors import TrainingError
from stream4d.models.temporal_weights import FORMAT, read_weights

MAX_BYTES = 25_000_000
"""What the wheel allows for weights."""
LICENCE = "Apache-2.0"
ORIGIN = (
    "encoder initialised from XFeat (Potje et al., CVPR 2024), Apache-2.0; "
    "trained on rendered clips, path-traced rooms and streets, and layered photos"
)


def ship(source: str | Path, target: str | Path, *, others: Sequence[str | Path] = ()) -> Path:
    """Write ``source`` (a run's ``ema.safetensors``) as float16 to ``target`` and load it once.

    With the weights of ``others``, runs of which one began with the other, their plain average is written: it often is
    better than each (Wortsman et al., "Model soups", ICML 2022).

    Raises:
        TrainingError: not checkpoints of ours, of different networks, or too large for the package.
    """
    target = Path(target)
    tensors, metadata = averaged(Path(source), [Path(other) for other in others])
    tensors = {name: tensor.half() for name, tensor in tensors.items()}
    recipe = json.loads(metadata.get("recipe", "{}"))
    for private in ("photos", "start_from", "xfeat", "real"):  # paths of the machine that trained
        recipe.pop(private, None)
    recipe.get("scenes", {}).pop("photo_dir", None)
    metadata |= {
        "recipe": json.dumps(recipe),
        "licence": LICENCE,
        "origin": ORIGIN,
        "stream4d": __version__,
    }
    if others:
        metadata["averaged_runs"] = str(1 + len(others))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part.safetensors")
    save_file(tensors, part, metadata)
    size = part.stat().st_size
    if size > MAX_BYTES:
        part.unlink()
        raise TrainingError(f"{size} bytes are too many for the package (at most {MAX_BYTES})")
    read_weights(part)
    part.chmod(0o644)  # safetensors writes for the owner alone
    part.replace(target)
    return target


def averaged(source: Path, others: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the mean of some runs' weights, and what the first says of itself.

    Raises:
        TrainingError: not checkpoints of ours, or of different networks.
    """
    tensors, metadata = _read(source)
    for other in others:
        added, _ = _read(other)
        if {n: x.shape for n, x in added.items()} != {n: x.shape for n, x in tensors.items()}:
            raise TrainingError(f"{other} is of another network than {source}: no average")
        tensors = {name: tensor + added[name] for name, tensor in tensors.items()}
    return {name: tensor / (1 + len(others)) for name, tensor in tensors.items()}, metadata


def _read(source: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the float32 tensors of a run and what it says of itself."""
    try:
        with safe_open(source, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        tensors = {name: tensor.float() for name, tensor in load_file(source).items()}
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot read {source}: {error}") from None
    if metadata.get("format") != FORMAT:
        raise TrainingError(f"{source} is not a run's ema.safetensors")
    return tensors, metadata
