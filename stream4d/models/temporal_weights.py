"""Checkpoints of the temporal model: the file says how large its network is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from stream4d.errors import ModelError, WeightsError
from stream4d.models.checkpoint import read_checkpoint
from stream4d.models.temporal_net import NetConfig, TemporalNet
from stream4d.models.weights import KeyMap, fit

FORMAT = "stream4d-temporal-2"
"""Written into the file's metadata; another format is refused."""


def read_weights(path: str | Path) -> TemporalNet:
    """Build the network that a checkpoint of ours describes.

    Raises:
        WeightsError: missing, damaged, or not a checkpoint of this model.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"no weights of the temporal model at {path}: train them (`stream4d train`), pass weights=FILE, "
            "or use --model classical, which needs none"
        )
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"cannot read {path}: {error}") from None
    if metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path} is not a checkpoint of the temporal model: give the ema.safetensors of a training run"
        )
    try:
        config = NetConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError, ModelError) as error:
        raise WeightsError(
            f"{path} describes no network that this version knows: {error}"
        ) from None
    with torch.device("meta"):
        net = TemporalNet(config)
    # Stored as float16 to halve the file; the network is float32 (autocast lowers what it can).
    checkpoint = read_checkpoint(path)
    tensors = {k: v.float() for k, v in checkpoint.tensors.items()}
    fit(net, replace(checkpoint, tensors=tensors), KeyMap(), family="temporal")
    return net
