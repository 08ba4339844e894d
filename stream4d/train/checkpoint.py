"""Files of a run: written whole or not at all, and read where they fit."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stream4d.errors import TrainingError
from stream4d.models.frame_encoder import convert_xfeat
from stream4d.models.temporal_net import TemporalNet
from stream4d.replacement import replacing
from stream4d.train.recipe import Recipe

logger = logging.getLogger(__name__)

UNREADABLE = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    EOFError,
    struct.error,
    UnpicklingError,
    SafetensorError,
)
"""What torch and safetensors raise on files that are missing, cut off or no checkpoints."""


def replace_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file beside ``path``, which takes its place when it is whole.

    Raises:
        TrainingError: it cannot be written; the file that was there stays.
    """
    try:
        with replacing(path) as partial:
            write(partial)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch.save says RuntimeError where the disk is full
        reason = " ".join(str(error).split())[:200]
        kept = f"; {path.name} from before is intact" if path.is_file() else ""
        raise TrainingError(f"cannot write {path}: {reason}{kept}") from None


def load_initial_weights(net: TemporalNet, recipe: Recipe) -> None:
    """Load the recipe's ``start_from``, or the public encoder.

    Raises:
        TrainingError: the file cannot be read, or nothing in it fits.
    """
    try:
        if recipe.start_from is not None:
            path = Path(recipe.start_from)
            if path.suffix == ".safetensors":
                tensors = load_file(path)
            else:
                loaded = torch.load(path, map_location="cpu", weights_only=True)
                tensors = loaded.get("ema", loaded.get("net", loaded))
            own = net.state_dict()
            fitting = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
            if not fitting:
                raise TrainingError(
                    f"no weight of {path} fits the network: is it a temporal checkpoint?"
                )
            net.load_state_dict(fitting, strict=False)
            logger.info("took %d of %d weights from %s", len(fitting), len(own), path)
        elif recipe.xfeat is not None:
            loaded = torch.load(recipe.xfeat, map_location="cpu", weights_only=True)
            loaded = {k.removeprefix("net."): v for k, v in loaded.items()}
            net.encoder.load_state_dict(convert_xfeat(loaded), strict=False)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"cannot read initial weights: {reason}") from None
