"""The trainer: AdamW, warm-up and cosine, bf16 autocast, clipping, averaged weights, exact resume, several processes.

A run folder holds ``last.pt`` (all that resume needs), ``best.pt`` (the same, at the best validation score),
``ema.safetensors`` (averaged weights of the best), ``ema-STEP.safetensors`` (those of each validation),
``recipe.yaml`` and TensorBoard logs. Every file is replaced atomically: a kill or a full disk leaves the one before.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stream4d.errors import TrainingError
from stream4d.models.temporal_net import ClipOutput, TemporalNet
from stream4d.models.temporal_weights import FORMAT
from stream4d.train.batches import Batches
from stream4d.train.checkpoint import UNREADABLE, load_initial_weights, replace_whole
from stream4d.train.clip import ClipBatch
from stream4d.train.criterion import objective
from stream4d.train.recipe import Recipe, dump_recipe
from stream4d.train.run_log import RunLog

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 10
"""Steps in a row whose loss or gradient is not finite before the run stops."""


class Trainer:
    """One run of a recipe in a folder."""

    def __init__(
        self, recipe: Recipe, out: str | Path, *, device: str = "cpu", resume: bool = False
    ) -> None:
        """Prepare the run.

        Raises:
            TrainingError: the folder holds a run already, holds none to resume, or cannot be written.
        """
        self.recipe = recipe
        self.out = Path(out)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device(device)
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        torch.manual_seed(recipe.seed)
        self._prepare_folder(resume)
        self.net = TemporalNet(recipe.net).to(self.device)
        load_initial_weights(self.net, recipe)
        self.ema = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.step, self.best = 0, math.inf
        self._is_stopped = False
        if resume:
            self._restore(self.out / "last.pt")
        self.batches = Batches(recipe, rank=self.rank, device=self.device)
        self._validation: list[tuple[ClipBatch, Tensor]] = []

    def _prepare_folder(self, resume: bool) -> None:
        last = self.out / "last.pt"
        if resume and not last.is_file():
            raise TrainingError(f"nothing to resume: {last} does not exist")
        if not resume and last.is_file():
            raise TrainingError(f"{self.out} already holds a run: pass --resume, or another --out")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if self.rank == 0:
                text = yaml.safe_dump(dump_recipe(self.recipe), sort_keys=False)
                (self.out / "recipe.yaml").write_text(text, encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"cannot write to {self.out}: {error.strerror}") from None

    def stop(self) -> None:
        """Let ``run`` end after the step in hand, with a checkpoint."""
        self._is_stopped = True

    def run(
        self,
        stop_after: int | None = None,
        on_step: Callable[[str], None] = lambda note: None,
    ) -> None:
        """Train to the last step, or for ``stop_after`` steps of this call, or until ``stop``.

        Args:
            stop_after: steps of this call.
            on_step: told after each step, with a line about the losses.

        Raises:
            TrainingError: the loss had no finite value for long, or the disk is full; the last good checkpoint stays.
        """
        module, log, bad, done = self._parallel(), RunLog(self.out, self.rank), 0, 0
        saved = time.monotonic()
        for step, clips, initial in self.batches.iterate(self.step):
            terms, finite = self._update(module, clips, initial, step)
            self.step, done = step + 1, done + 1
            bad = 0 if finite else bad + 1
            if bad >= MAX_BAD_STEPS:
                raise TrainingError(
                    f"the loss had no finite value for {bad} steps up to step {step}: lower learning_rate "
                    f"(now {self.recipe.learning_rate:g}); the last good checkpoint is {self.out / 'last.pt'}"
                )
            log.add(terms)
            if self.step % self.recipe.log_every == 0:
                log.write(self.step, {"lr": self.learning_rate(step)})
            if self.step % self.recipe.validate_every == 0 and self.rank == 0:
                self._judge(log)
            on_step(log.brief)
            stopping = self._is_stopped or (stop_after is not None and done >= stop_after)
            if stopping or time.monotonic() - saved > 60 * self.recipe.save_minutes:
                self.save()
                saved = time.monotonic()
            if stopping:
                return
        if self.step % self.recipe.validate_every:  # not judged just now
            self._judge(log)
        self.save()

    def learning_rate(self, step: int) -> float:
        """Warm-up, then half a cosine down to a hundredth (Loshchilov & Hutter, ICLR 2017)."""
        r = self.recipe
        rise = min(1.0, (step + 1) / max(1, r.warmup))
        fall = 0.5 * (1 + math.cos(math.pi * step / r.steps))
        return r.learning_rate * rise * max(fall, 0.01)

    def _parallel(self) -> nn.Module:
        if self.world == 1:
            return self.net
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        # A layered batch has no labels for depth: its head has no gradient in that step.
        return DistributedDataParallel(self.net, find_unused_parameters=True)

    def _update(
        self, module: nn.Module, clips: ClipBatch, initial: Tensor, step: int
    ) -> tuple[dict[str, Tensor], bool]:
        self.net.train()
        with self._autocast():
            output = module(clips.rgb, initial, _known_intrinsics(clips, step))
        total, terms = objective(output, clips, self.recipe.loss)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        finite = bool(torch.isfinite(total)) and bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
            self._average()
        else:
            logger.warning(
                "step %d: loss %s, gradient %s: skipped", step, float(total.detach()), float(norm)
            )
        terms |= {"total": total.detach(), "gradient_norm": norm.detach()}
        return terms | _flow_errors(output, clips, initial), finite

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp)

    def _average(self) -> None:
        # Early on a long average would remember the random start: the usual growing window.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.net.state_dict().items():
                self.ema[name].lerp_(value, 1 - decay)

    def _judge(self, log: RunLog) -> None:
        scores = self.validate()
        log.write(self.step, {f"validation/{k}": v for k, v in scores.items()})
        logger.info("step %d: %s", self.step, "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        if self.rank != 0:
            return

        def export(path: Path) -> None:
            self._export(path, scores["score"])

        # The fixed clips decide little: which weights are best on real ones may show long after.
        replace_whole(self.out / f"ema-{self.step:06d}.safetensors", export)
        if scores["score"] < self.best:
            self.best = scores["score"]
            self.save("best.pt")
            replace_whole(self.out / "ema.safetensors", export)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Score the averaged weights on fixed clips; ``score`` (lower is better) is log EPE + 1 - IoU + depth error."""
        from stream4d.train.validation import clip_scores

        if not self._validation:
            fixed = Batches(_fixed(self.recipe), device=self.device)
            self._validation = [fixed.batch(i) for i in range(self.recipe.validation_clips)]
        net = TemporalNet(self.recipe.net).to(self.device).eval()
        net.load_state_dict(self.ema)
        sums: dict[str, list[float]] = defaultdict(list)
        for clips, initial in self._validation:
            with self._autocast():
                output: ClipOutput = net(clips.rgb, initial)
            for name, value in clip_scores(output, clips, initial).items():
                sums[name].append(value)
        scores = {name: float(np.nanmean(values)) for name, values in sums.items()}
        parts = (
            math.log(scores["epe"] + 1e-3),
            1 - scores.get("iou", 0.0),
            scores.get("depth", 0.0),
        )
        return scores | {"score": sum(p for p in parts if not math.isnan(p))}

    def save(self, name: str = "last.pt") -> None:
        """Write a checkpoint that resumes exactly; only rank 0 writes.

        Raises:
            TrainingError: the disk is full or the folder cannot be written; the file that was there stays.
        """
        if self.rank != 0:
            return
        state = {
            "net": self.net.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
            "recipe": json.dumps(dump_recipe(self.recipe)),
        }
        replace_whole(self.out / name, lambda path: torch.save(state, path))

    def _export(self, path: Path, score: float) -> None:
        metadata = {
            "format": FORMAT,
            "config": json.dumps(dump_recipe(self.recipe)["net"]),
            "recipe": json.dumps(dump_recipe(self.recipe)),
            "step": str(self.step),
            "score": f"{score:.5f}",
        }
        save_file({k: v.contiguous() for k, v in self.ema.items()}, path, metadata)

    def _restore(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.ema = dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.best = int(state["step"]), float(state["best"])
        except UNREADABLE as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(f"cannot resume from {path}: {reason}") from None


def _known_intrinsics(clips: ClipBatch, step: int) -> Tensor:  # (B, T, 3, 3)
    """Tell the network the camera in every second step; NaN where it must guess."""
    known = clips.has_intrinsics & (step % 2 == 0)
    return torch.where(known[:, None, None, None], clips.K, torch.nan)


@torch.no_grad()
def _flow_errors(output: ClipOutput, clips: ClipBatch, initial: Tensor) -> dict[str, Tensor]:
    """Endpoint error of the answer and of the initial flow, pixels.

    The mean is ruled by a few hopeless pixels; capped at 3 px it shows what most pixels gain.
    """
    answers = [pair.flow.steps[-1] for pair in output.pairs]
    starts = [initial[:, t].transpose(0, 1).flatten(0, 1) for t in range(len(answers))]
    out: dict[str, Tensor] = {}
    for name, flows in (("epe", answers), ("epe_initial", starts)):
        errors = torch.stack(
            [torch.linalg.vector_norm(f - _target(clips, t), dim=1) for t, f in enumerate(flows)]
        )
        out |= {name: errors.mean(), f"{name}_capped": errors.clamp(max=3).mean()}
    return out


def _target(clips: ClipBatch, t: int) -> Tensor:  # (2B, 2, H, W)
    return torch.cat([clips.flow[:, t], clips.flow_backward[:, t]]).permute(0, 3, 1, 2)


def _fixed(recipe: Recipe) -> Recipe:
    """The recipe of the validation set: other seeds, no layers, the last stage's size in small batches."""
    import dataclasses

    stage = dataclasses.replace(recipe.stages[-1], until=1.0, batch=2, frames=3)
    return dataclasses.replace(
        recipe, seed=recipe.seed + 7_777_777, layered=0.25, real=(), workers=0, stages=(stage,)
    )
