"""Optical flow of single image pairs: the model's session alone, without reader or pose chain."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stream4d.config import RunConfig
from stream4d.errors import EvaluationError
from stream4d.eval.flow import FlowScorer, dis_flow, read_flow
from stream4d.eval.grid import resize_flow
from stream4d.eval.process import peak_rss_mb
from stream4d.eval.row import empty_row
from stream4d.eval.sequence import EvalSequence
from stream4d.models.base import PointmapModel
from stream4d.models.registry import create_model
from stream4d.packets import Array, Frame, VideoInfo, Window
from stream4d.reader.preprocess import Preprocessor, processed_size


def evaluate_pairs(
    sequence: EvalSequence, config: RunConfig, on_frames: Callable[[int], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the model on every pair and return (row, details); DIS stands beside, on the same images.

    Images are brought to the processed size, as in a video; ``flow_dis_full`` in the details is DIS on the images as
    they are. ``fps`` counts images.

    Raises:
        EvaluationError: an image cannot be read, or the model predicts no flow.
    """
    device = "cpu" if config.model.device == "auto" else config.model.device
    model = create_model(
        config.model.name, weights=config.model.weights, device=device, **config.model.options
    )
    scorers = {"flow": FlowScorer(), "flow_dis": FlowScorer(), "flow_dis_full": FlowScorer()}
    per_pair: dict[str, dict[str, float]] = {}
    seconds: list[float] = []
    for number, (path_a, path_b, path_truth) in enumerate(sequence.pairs):
        images = [_read_rgb(path) for path in (path_a, path_b)]
        truth = read_flow(path_truth)
        small = [_processed(image, config) for image in images]
        started = time.perf_counter()
        ours = predict_pair(model, small[0], small[1], str(path_a))
        seconds.append(time.perf_counter() - started)
        found = {"flow": ours, "flow_dis": dis_flow(*small), "flow_dis_full": dis_flow(*images)}
        epe = {name: _add(scorers[name], flow, truth) for name, flow in found.items()}
        if epe["flow"] is not None and epe["flow_dis"] is not None:
            name = path_a.stem.removesuffix("-img0")
            per_pair[name] = {"epe": epe["flow"], "dis_epe": epe["flow_dis"]}
        on_frames(2 * (number + 1))
    row = empty_row(sequence.name, "ok", frames=2 * len(sequence.pairs))
    row["frames_with_pose"] = None  # a pair of images has flow, but no pose to be found
    row["fps"] = 2 * len(seconds) / sum(seconds) if seconds else None
    row["latency_s"], row["peak_rss_mb"] = (seconds[0] if seconds else None), peak_rss_mb()
    details: dict[str, Any] = {"kind": sequence.kind, "pairs": per_pair}
    for name, scorer in scorers.items():
        details[name] = _figures(scorer, sequence.name)
    for name in ("flow", "flow_dis"):
        row[f"{name}_epe"] = details[name]["epe"]
        row[f"{name}_fl_percent"] = details[name]["fl_percent"]
    return row, details


def _add(scorer: FlowScorer, flow: Array, truth: Array) -> float | None:
    """Score one pair, for itself and with the others; return its mean endpoint error in pixels of the truth."""
    flow = resize_flow(flow, truth.shape[:2])
    alone = FlowScorer()
    for each in (scorer, alone):
        each.add(flow, truth)
    score = alone.score()
    return None if score is None else score.epe


def _figures(scorer: FlowScorer, name: str) -> dict[str, float]:
    """Return what a scorer has, as plain data.

    Raises:
        EvaluationError: no pixel had known flow.
    """
    score = scorer.score()
    if score is None:
        raise EvaluationError(f"{name} has no pixel with known flow")
    return {
        "epe": score.epe,
        "fl_percent": score.fl_percent,
        "px1_percent": score.px1_percent,
    }


def predict_pair(model: PointmapModel, first: Array, second: Array, source: str) -> Array:
    """Return (H, W, 2) flow from one uint8 image to the next, by a fresh session.

    Raises:
        EvaluationError: the model predicts no flow.
    """
    H, W = first.shape[:2]
    info = VideoInfo.of_frames(source, W, H, fps=1, count=2)
    frames = tuple(
        Frame(index=i, timestamp_ns=i * 10**9, rgb=rgb) for i, rgb in enumerate((first, second))
    )
    with model.session(info) as session:
        prediction = session.step(Window(index=0, frames=frames, overlap=0))
    if prediction.flow is None:
        raise EvaluationError(f"model {model.card.name} predicts no optical flow")
    return np.asarray(prediction.flow[0])


def _processed(image: Array, config: RunConfig) -> Array:
    H, W = image.shape[:2]
    size = processed_size(W, H, config.reader.resolution)
    return Preprocessor((W, H), size, config.reader)(image)


def _read_rgb(path: Path) -> Array:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise EvaluationError(f"{path} is not an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
