"""``stream4d train``: run a recipe, or validate weights on clips with ground truth."""

from __future__ import annotations

import argparse


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
        "--validate", metavar="FOLDER", help="score weights on clips with ground truth instead"
    )
    parser.add_argument("--weights", help="weights for --validate (default: those of the package)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from stream4d.errors import TrainingError

    if args.recipe is None:
        raise TrainingError("give a recipe, for example: stream4d train configs/train/cpu.yaml")
    from stream4d.train.loop import Trainer
    from stream4d.train.recipe import load_recipe

    trainer = Trainer(load_recipe(args.recipe), args.out, device=args.device, resume=args.resume)
    trainer.run(stop_after=args.steps)
    return 0
