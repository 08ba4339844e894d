"""Make a checkpoint ready for the package: half precision, provenance in the metadata, checked by loading it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from stream4d._version import __version__
from stream4d.errors import TrainingError
from stream4d.models.temporal_weights import FORMAT, read_weights

MAX_BYTES = 25_000_000
"""What the wheel allows for weights."""
LICENCE = "Apache-2.0"
ORIGIN = (
    "encoder initialised from XFeat (Potje et al., CVPR 2024), Apache-2.0; "
    "trained on rendered clips, rendered interiors and layered photos"
)


def ship(source: str | Path, target: str | Path) -> Path:
    """Write ``source`` (a run's ``ema.safetensors``) as float16 to ``target`` and load it once.

    Raises:
        TrainingError: not a checkpoint of ours, or too large for the package.
    """
    source, target = Path(source), Path(target)
    try:
        with safe_open(source, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        tensors = {name: tensor.half() for name, tensor in load_file(source).items()}
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot read {source}: {error}") from None
    if metadata.get("format") != FORMAT:
        raise TrainingError(f"{source} is not a run's ema.safetensors")
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
