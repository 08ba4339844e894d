"""Clips whose view is mostly movers: ``python -m tests.movers 1301-1312 [--uncalibrated] [--model temporal]``.

A seed places the movers of ``synthetic.BIG_MOVERS`` elsewhere, swings them otherwise and paints everything anew; the
camera's path goes by turns. Prints how much of the view moves and the path's error (after Sim(3) alignment) in percent
of its length.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

from stream4d.models.registry import create_model
from tests.synthetic import BIG_MOVERS, Ball, Path, Scene
from tests.test_chain import ate, run

FRAMES = 48
PATHS: tuple[Path, ...] = ("orbit", "walk", "loop", "forward")
LIMIT_PERCENT = 2.0
"""Beyond this a path counts as wrong."""


def scene_of(seed: int) -> Scene:
    """Build the scene of a seed."""
    rng = np.random.default_rng(seed)
    balls = tuple(_varied(ball, rng) for ball in BIG_MOVERS)
    path = PATHS[(seed - 1) % len(PATHS)]
    return Scene(path, balls=balls, width=256, height=192, focal=220, seed=seed)


def _varied(ball: Ball, rng: np.random.Generator) -> Ball:
    centre = np.array(ball.centre) + rng.normal(0, 0.12, 3)
    swing = np.array(ball.swing) * rng.uniform(0.6, 1.5, 3) * rng.choice([-1, 1], 3)
    period = ball.period * rng.uniform(0.7, 1.4)
    return dataclasses.replace(ball, centre=tuple(centre), swing=tuple(swing), period=period)


def main() -> None:
    """Run the clips of the seeds, print a line each."""
    parser = argparse.ArgumentParser(prog="python -m tests.movers", description=__doc__)
    parser.add_argument("seeds", help="first and last seed, as in 1301-1312")
    parser.add_argument("--uncalibrated", action="store_true", help="do not give the true camera")
    parser.add_argument("--model", default="classical", help="model that gives the flow")
    args = parser.parse_args()
    first, _, last = args.seeds.partition("-")
    model, errors = create_model(args.model), []
    for seed in range(int(first), int(last or first) + 1):
        scene = scene_of(seed)
        _, poses = run(scene, model, FRAMES, with_K=not args.uncalibrated)
        error, length = ate(scene, poses)
        errors.append(100 * error / length)
        cover = np.mean([scene.moving(t).mean() for t in range(FRAMES)])
        print(
            f"{seed} {scene.path:8} movers {cover:4.0%} of the view, error {errors[-1]:5.2f} %",
            flush=True,
        )
    wrong = sum(error > LIMIT_PERCENT for error in errors)
    print(f"{wrong} of {len(errors)} beyond {LIMIT_PERCENT:g} %; median {np.median(errors):.2f} %")


if __name__ == "__main__":
    main()
