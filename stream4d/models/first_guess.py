"""A first guess of a scene from all its pairs, for the alignment to begin from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stream4d.geometry.camera import default_focal, make_K
from stream4d.geometry.transforms import (
    decompose,
    invert,
    project_to_so3,
    similarity,
    transform_points,
    without_scale,
)
from stream4d.models.alignment import (
    FOCAL_GAIN,
    MEAN_SCALE,
    PP_GAIN,
    PairSet,
    Scene,
    pose_parameters,
)
from stream4d.models.pair_graph import spanning_tree
from stream4d.models.pairs import Directed, directed
from stream4d.models.pointmaps import estimate_focal, pose_by_pnp, similarity_fit
from stream4d.packets import Array


def initial_scene(
    pairs: PairSet,
    *,
    shared_focal: bool = False,
    given_focal: float | None = None,
    principal_point: tuple[float, float] | None = None,
    fixed: dict[int, tuple[Array, Array]] | None = None,
    given_poses: Sequence[Array] | None = None,
) -> Scene:
    """Chain the pairs along their maximum spanning tree into a first guess of the scene.

    Args:
        principal_point: (x, y) in pixels, the middle (W / 2, H / 2) by default.
        shared_focal: one focal length for all frames.
        given_focal: a known one, in pixels.
        fixed: frame → (world_from_cam, depth map) of frames that are known already (the overlap with what was
            aligned before): the guess is moved into their world.
        given_poses: world_from_cam of all frames, where they are known; they replace the guessed ones.
    """
    n, edges = pairs.frames, [(int(i), int(j)) for i, j in pairs.edges]
    data = directed(pairs)
    H, W = data[0].confidence_i.shape
    middle = principal_point or (W / 2, H / 2)
    focals, clouds, found = _chain(edges, data, n, middle)
    if given_focal is not None:
        focals = [given_focal] * n
    elif shared_focal:
        focals = [float(np.mean(focals))] * n
    poses, depths = [], []
    for i in range(n):
        pose = found.get(i)
        if pose is None:
            confidence = frame_confidence(edges, data, i)
            cam = pose_by_pnp(clouds[i], confidence, make_K(focals[i], focals[i], *middle))
            pose = np.eye(4) if cam is None else invert(cam)
        poses.append(pose)
        depths.append(transform_points(invert(pose), clouds[i])[..., 2])
    if given_poses is not None:
        poses, depths, clouds = _into_given_world(poses, depths, clouds, given_poses)
    elif fixed:
        poses, depths, clouds = _into_known_world(poses, depths, clouds, fixed)
    similarities = [
        similarity_fit(d.points_i, clouds[i], d.confidence_i)
        for (i, _), d in zip(edges, data, strict=True)
    ]
    scene = _as_scene(
        poses,
        depths,
        focals[: 1 if shared_focal or given_focal else n],
        similarities,
        keep_size=bool(fixed) or given_poses is not None,
    )
    offset = torch.tensor([middle[0] - W / 2, middle[1] - H / 2]) / PP_GAIN
    return scene._replace(principal=scene.principal + offset)


def _chain(
    edges: Sequence[tuple[int, int]],
    data: Sequence[Directed],
    n: int,
    middle: tuple[float, float],
) -> tuple[list[float], list[Array], dict[int, Array]]:
    """Walk the tree from its best edge; return focal lengths and clouds in the world of that edge, and poses.

    Poses (world_from_cam) are those of the frames whose camera some edge of the tree is in; others are left to PnP.
    """
    scores = {
        e: float(d.confidence_i.mean() * d.confidence_j.mean())
        for e, d in zip(edges, data, strict=True)
    }
    index = {e: k for k, e in enumerate(edges)}
    tree = spanning_tree(scores, n)
    todo = list(tree)
    clouds: dict[int, Array] = {}
    i, j = todo.pop(0)
    first = data[index[i, j]]
    clouds[i], clouds[j] = first.points_i.astype(np.float64), first.points_j.astype(np.float64)
    poses = {i: np.eye(4)}
    while todo:
        edge = next(e for e in todo if (e[0] in clouds) != (e[1] in clouds))
        todo.remove(edge)
        i, j = edge
        pair = data[index[edge]]
        if i in clouds:
            world_from_pair = similarity_fit(pair.points_i, clouds[i], pair.confidence_i)
            clouds[j] = transform_points(world_from_pair, pair.points_j)
        else:
            world_from_pair = similarity_fit(pair.points_j, clouds[j], pair.confidence_j)
            clouds[i] = transform_points(world_from_pair, pair.points_i)
        poses.setdefault(i, without_scale(world_from_pair))
    focals = []
    for frame in range(n):
        # An edge of the tree before better ones that are not.
        own = [(e in tree, scores[e], index[e]) for e in edges if e[0] == frame]
        best = data[max(own)[2]].points_i if own else clouds[frame]
        focal = estimate_focal(best, middle, min_focal=0.5, max_focal=3.5)
        focals.append(focal if np.isfinite(focal) else default_focal(*best.shape[1::-1]))
    return focals, [clouds[frame] for frame in range(n)], poses


def frame_confidence(edges: Sequence[Sequence[int]], data: Sequence[Directed], frame: int) -> Array:
    """Return the best confidence that any pair gives a frame's pixels."""
    found = [d.confidence_i for e, d in zip(edges, data, strict=True) if e[0] == frame]
    found += [d.confidence_j for e, d in zip(edges, data, strict=True) if e[1] == frame]
    return np.max(found, axis=0)


def _into_known_world(
    poses: list[Array],
    depths: list[Array],
    clouds: list[Array],
    fixed: dict[int, tuple[Array, Array]],
) -> tuple[list[Array], list[Array], list[Array]]:
    """Move a guess so that the known frames lie where they are known to be."""
    ratios = [np.median(fixed[i][1] / np.maximum(depths[i], 1e-6)) for i in fixed]
    scale = float(np.clip(np.median(ratios), 1e-3, 1e3))
    anchor = max(fixed)
    known, guess = fixed[anchor][0], poses[anchor].copy()
    R = known[:3, :3] @ guess[:3, :3].T
    world_from_guess = similarity(scale, R, known[:3, 3] - scale * R @ guess[:3, 3])
    moved = []
    for pose in poses:
        _, R, t = decompose(world_from_guess @ pose)
        moved.append(similarity(1.0, R, t))
    for i, (pose, _) in fixed.items():
        moved[i] = pose
    depths = [fixed[i][1] if i in fixed else scale * z for i, z in enumerate(depths)]
    return moved, depths, [transform_points(world_from_guess, c) for c in clouds]


def _into_given_world(
    poses: Sequence[Array],
    depths: Sequence[Array],
    clouds: Sequence[Array],
    given: Sequence[Array],
) -> tuple[list[Array], list[Array], list[Array]]:
    """Move a guess onto given cameras: mean rotation, and the ratio of the two paths' spreads as scale."""
    guess, wanted = np.stack(poses), np.stack(given)
    R = project_to_so3((wanted[:, :3, :3] @ guess[:, :3, :3].transpose(0, 2, 1)).sum(0))
    middle_guess, middle_wanted = guess[:, :3, 3].mean(0), wanted[:, :3, 3].mean(0)
    spread_guess = np.linalg.norm(guess[:, :3, 3] - middle_guess)
    spread_wanted = np.linalg.norm(wanted[:, :3, 3] - middle_wanted)
    # Cameras that stand still say nothing of scale.
    has_path = spread_guess > 1e-6 and spread_wanted > 1e-6
    scale = float(np.clip(spread_wanted / spread_guess, 1e-4, 1e4)) if has_path else 1.0
    world_from_guess = similarity(scale, R, middle_wanted - scale * R @ middle_guess)
    return (
        [np.asarray(pose, np.float64) for pose in given],
        [scale * z for z in depths],
        [transform_points(world_from_guess, cloud) for cloud in clouds],
    )


def _as_scene(
    poses: Sequence[Array],
    depths: Sequence[Array],
    focals: Sequence[float],
    similarities: Sequence[Array],
    *,
    keep_size: bool,
) -> Scene:
    scales, R, t = decompose(np.stack(similarities))
    scales = np.maximum(scales, 1e-6)
    pair_poses = pose_parameters(torch.tensor(R).float(), torch.tensor(t / scales[:, None]).float())
    log_scales = torch.tensor(np.log(scales)).float()
    # The objective keeps the pairs' mean scale at MEAN_SCALE: the world must have that size too.
    size = 1.0 if keep_size else MEAN_SCALE / float(np.exp(np.log(scales).mean()))
    matrix = torch.tensor(np.stack(poses)).float()
    matrix[:, :3, 3] *= size
    depth = size * torch.tensor(np.stack(depths)).float().flatten(1)
    return Scene(
        pairs=torch.cat([pair_poses, log_scales[:, None]], dim=1),
        log_depth=depth.clamp(min=1e-4).log(),
        poses=pose_parameters(matrix[:, :3, :3], matrix[:, :3, 3]),
        focal=FOCAL_GAIN * torch.tensor(focals).float().log()[:, None],
        principal=torch.zeros(len(focals), 2),
        adaptors=torch.zeros(len(similarities), 2),
    )
