"""``stream4d train``: run a recipe, or score weights on clips with ground truth."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stream4d.train.recipe import Recipe

EXAMPLES = """\
examples:
  stream4d train configs/train/smoke.yaml --out runs/smoke       does training run here? (a minute)
  stream4d train configs/train/cpu.yaml --out runs/a --resume    go on after a break
  stream4d train --validate clips/ --weights runs/a/ema.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``stream4d train``."""
    parser.add_argument("recipe", nargs="?", help="YAML recipe, see configs/train")
    parser.add_argument(
        "--out", default="runs/train", help="folder of the run (default: %(default)s)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the folder's last checkpoint"
    )
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1 … (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="stop after so many steps in this call")
    parser.add_argument(
        "--validate", metavar="FOLDER", help="score weights on sequences with ground truth instead"
    )
    parser.add_argument("--weights", help="weights to score (default: those of the package)")
    parser.add_argument(
        "--frames", type=int, default=48, help="frames scored per sequence (default: %(default)s)"
    )
    parser.add_argument(
        "--ship", metavar="FILE", help="write --weights to FILE in half precision, with provenance"
    )
    parser.add_argument(
        "--average",
        metavar="FILE",
        nargs="+",
        default=[],
        help="with --ship: write the average with the weights of these runs",
    )
    parser.add_argument("-v", "--verbose", action="count", default=0, help="show every loss")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stream4d.errors import TrainingError

    if args.validate is not None:
        return _validate(args)
    if args.ship is not None:
        from stream4d.train.ship import ship

        if args.weights is None:
            raise TrainingError("--ship needs --weights: the ema.safetensors of a run")
        ship(args.weights, args.ship, others=args.average)
        return 0
    if args.average:
        raise TrainingError("--average goes with --ship")
    if args.recipe is None:
        raise TrainingError("give a recipe, for example: stream4d train configs/train/cpu.yaml")
    if args.steps is not None and args.steps < 1:
        raise TrainingError(f"--steps must be at least 1, got {args.steps}")
    from stream4d.train.recipe import load_recipe

    recipe = load_recipe(args.recipe)
    device = _device(args.device)
    if args.resume and not Path(args.out).is_dir():  # else claiming it would make it
        raise TrainingError(f"nothing to resume: {args.out} does not exist")
    with _only_trainer(Path(args.out)):
        return _train(recipe, args, device)


def _train(recipe: Recipe, args: argparse.Namespace, device: str) -> int:
    from stream4d import logs
    from stream4d.interrupt import first_ctrl_c
    from stream4d.train.loop import Trainer

    trainer = Trainer(recipe, args.out, device=device, resume=args.resume)
    left = trainer.recipe.steps - trainer.step
    total = trainer.step + min(left, args.steps or left)
    progress = logs.Progress(
        total, unit="step", quiet=args.quiet or trainer.rank > 0, done=trainer.step
    )
    with progress, first_ctrl_c(trainer.stop, announce="stopping after this step"):
        trainer.run(stop_after=args.steps, on_step=progress.advance)
    if trainer.step < trainer.recipe.steps and not args.quiet:
        logs.show(f"stopped after step {trainer.step}: go on with --resume")
    return 0 if trainer.step >= total else 130


@contextlib.contextmanager
def _only_trainer(out: Path) -> Iterator[None]:
    """Claim the folder of a run; of several processes under torchrun the first does it for all.

    Raises:
        TrainingError: another process trains there, or the folder cannot be written.
    """
    from stream4d.claim import claim
    from stream4d.errors import TrainingError

    with contextlib.ExitStack() as stack:
        if int(os.environ.get("RANK", 0)) == 0:
            try:
                out.mkdir(parents=True, exist_ok=True)
                stack.enter_context(claim(out / ".lock", out, TrainingError))
            except OSError as error:
                raise TrainingError(f"cannot write to {out}: {error.strerror}") from None
        yield


def _device(name: str) -> str:
    """Under torchrun each process takes the GPU of its local rank."""
    from stream4d.devices import usable

    rank = os.environ.get("LOCAL_RANK")
    return usable(f"cuda:{rank}" if name == "cuda" and rank is not None else name)


def _validate(args: argparse.Namespace) -> int:
    from stream4d.errors import TrainingError

    if args.frames < 1:
        raise TrainingError(f"--frames must be at least 1, got {args.frames}")
    from stream4d.models.temporal import TemporalModel
    from stream4d.train.benchmark import table, validate

    folder = Path(args.validate)
    if not folder.is_dir():
        raise TrainingError(f"no such folder: {folder}")
    model = TemporalModel.create("temporal", weights=args.weights, device=_device(args.device))
    print(table(validate(folder, model, frames=args.frames)))  # noqa: T201
    return 0
