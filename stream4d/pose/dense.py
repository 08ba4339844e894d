"""Dense depth, carried from frame to frame.

Each pixel of a grid holds an inverse depth with its information. A frame is looked at when it leaves: flow then leads
each pixel through the frames that follow, so that its depth is fitted over a baseline of several frames, and what was
known of it before is carried along (as in Engel, Sturm, Cremers, "Semi-dense visual odometry", 2013). The grid is
coarser than the image, as flow is; the image's edges come back when the maps are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from stream4d.packets import Array
from stream4d.pose import _kernels_dense, _kernels_draw, motion
from stream4d.pose.completion import complete
from stream4d.pose.guess import Guess
from stream4d.pose.patches import known_sigma

GRID = 128
"""Grid pixels along the image's long side, about: flow is not sharper than that at the usual sizes."""
OFFSETS = (2, 5, 8)
"""Frames ahead in which a pixel is looked at: near ones are seen well, far ones show depth."""
FLOOR_VAR = 0.25**2
"""px²: what pose and interpolation add to the flow's own uncertainty, for the frame next to this one."""
FLOOR_GROWTH = 0.5
"""The same per further frame, as a share."""
FIRST_SIGHT = 0.25
"""Share of a frame's own measurement in the depth kept: most of it was in the last frame's too."""
FORGET = 0.97
"""Information kept from frame to frame: what warping costs."""
AGREES_SQ = 9.0
"""Squared difference, σ², at which what was known before counts half."""
SIGMA_GAIN, SIGMA_FLOOR = 2.5, 0.03
"""What stated relative errors of depth are multiplied by, and their least, as measured."""
HALO = 5
"""Grid pixels across which a mover spoils the depth around each of its pixels."""
KNOWN_INFO = 6000.0
"""Relative information of depth, noise taken as stated, beyond which a pixel speaks no louder (1σ of 1.3 %)."""
STIFFNESS = 3000.0
"""Information that neighbours on one surface have of each other's depth (relative differences of 1.8 %)."""
SMOOTHING_REACH = 2
"""Pixels of the image to each side over which a drawn map follows the image's edges."""
SMOOTHING_INFO = (30.0, 3000.0)
"""Least and most relative information with which a pixel goes into that."""
EDGE_VAR = 2e-4
"""Variance of the image, over its range squared, from which on its edges are those of depth."""


@dataclass(frozen=True, slots=True)
class Maps:
    """What the model says of one frame; flow is that from the frame before to this one."""

    flow: Array | None = None
    flow_backward: Array | None = None
    sigma: Array | None = None
    motion: Array | None = None
    depth: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """From one frame to the next, and the pose of the next seen from the frame that leaves."""

    flow: Array
    """(h, w, 2) pixels, on the grid."""
    doubts: Array
    """(h, w) its 1σ in pixels, infinite where it is not to be followed."""
    pose: Array | None
    """(3, 4) next-from-leaving, None where it was not measured."""


@dataclass(slots=True, eq=False)
class DenseState:
    """What is known of the frame that left last."""

    rho: Array = field(default_factory=lambda: np.zeros((0, 0)))
    """(h, w) float64 inverse depth."""
    info: Array = field(default_factory=lambda: np.zeros((0, 0)))
    """(h, w) its information."""
    logit: Array = field(default_factory=lambda: np.zeros((0, 0)))
    """(h, w) log odds that the surface moves."""
    pose: Array = field(default_factory=lambda: np.eye(3, 4))
    """(3, 4) camera-from-world."""
    segment: int = 0

    def move(self, pose: Array, scale: float) -> None:
        """Stand at another pose, all lengths multiplied."""
        self.pose, self.rho, self.info = pose, self.rho / scale, self.info * scale**2


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """How one still point explains the views of each pixel."""

    rho: Array
    """(h, w) inverse depth."""
    info: Array
    """(h, w) its information, noise taken as seen."""
    odds: Array
    """(h, w) log odds of motion that its errors add."""
    seen: Array
    """(h, w) number of views."""


def grid_step(H: int, W: int) -> int:
    """Return how many pixels lie between those of the grid."""
    return max(1, round(max(H, W) / GRID))


def way_of(
    flow: Array,  # (H, W, 2)
    back: Array,  # (H, W, 2) of the frame that it leads to
    sigma: Array | None,  # (H, W)
) -> tuple[Array, Array]:  # (h, w, 2), (h, w) float32
    """Return a flow on the grid, and its 1σ; infinite where it is lost and where the way back does not lead home."""
    H, W = flow.shape[:2]
    step = grid_step(H, W)
    doubts = np.empty((-(-H // step), -(-W // step)), np.float32)
    _kernels_dense.find_doubts(flow, back, known_sigma(sigma, flow), step, doubts)
    return np.ascontiguousarray(flow[::step, ::step]), doubts


def carry(
    before: DenseState,
    cam: Array,
    here_from_before: Array,  # (3, 4)
    flow: Array,  # (H, W, 2) from there to here
    back: Array,  # (H, W, 2) from here to there
    sigma: Array | None,  # (H, W) of the first
) -> Array:
    """Return (3, h, w) inverse depth, information and log odds brought to this frame; NaN where it was not seen."""
    out = np.empty((3, *before.rho.shape))
    step = grid_step(*flow.shape[:2])
    _kernels_dense.carry_maps(
        cam, here_from_before, flow, back, known_sigma(sigma, flow), step, before.rho, before.info, before.logit, out,
    )  # fmt: skip
    return out


def fit(cam: Array, links: list[Link], texture: Array, guess: Guess, step: int) -> Fit:
    """Follow the grid's pixels through ``links`` and fit an inverse depth to each."""
    h, w = guess.rho.shape
    uv = np.empty((h, w, 2))
    uv[..., 0], uv[..., 1] = np.arange(w) * step, np.arange(h)[:, None] * step
    var = np.zeros((h, w))
    wanted = [k for k in OFFSETS if k <= len(links)] or [len(links)]
    poses: list[Array] = []
    positions, variances = np.empty((len(wanted), h, w, 2)), np.empty((len(wanted), h, w))
    for k, link in enumerate(links, 1):
        _kernels_dense.follow_link(link.flow, link.doubts, step, uv, var)
        if k in wanted and link.pose is not None:
            n = len(poses)
            poses.append(link.pose)
            positions[n] = uv
            np.add(var, FLOOR_VAR * (1 + FLOOR_GROWTH * (k - 1)), out=variances[n])
            variances[n] += k * texture
    if not poses:
        nothing = np.zeros((h, w))
        return Fit(guess.rho, guess.info, nothing, nothing)
    out, n, expected = np.empty((5, h, w)), len(poses), guess.info
    _kernels_dense.fit_pixels(
        cam, np.stack(poses), positions[:n], variances[:n], step, guess.rho, expected, guess.limits[1], out
    )  # fmt: skip
    rho, info, square, across, seen = out
    noise = motion.noise_scale(across, seen)
    measured = np.maximum(info - expected, 0) / np.maximum(noise, square)
    return Fit(rho, expected + measured, motion.evidence(square, seen, noise), seen)


def fuse(fitted: Fit, carried: Array | None, moving: Array) -> tuple[Array, Array]:
    """Return inverse depth and information (h, w) from this frame's fit and from what was carried along."""
    if carried is None:
        return fitted.rho, fitted.info
    rho, info = carried[0], FORGET * np.nan_to_num(carried[1]) * (1 - moving)
    rho = np.where(info > 0, rho, fitted.rho)
    gap = (rho - fitted.rho) ** 2 / (1 / fitted.info + 1 / np.maximum(info, 1e-12))
    info *= AGREES_SQ / (AGREES_SQ + gap)
    old, new = (1 - FIRST_SIGHT) * info, FIRST_SIGHT * fitted.info
    return (old * rho + new * fitted.rho) / (old + new), np.maximum(old + new, fitted.info)


def draw(
    state: DenseState, guess: Guess, grey: Array, passing: tuple[Array, Array], step: int
) -> tuple[Array, Array]:
    """Return depth (H, W) float32, smoothed along surfaces, and how likely it is within 10 %.

    ``grey`` (H, W) is the image, in [0, 1].

    What was not measured, and what moves, has the relief that the model gives it and the scale of its surroundings.
    ``passing`` is what surfaces share, see ``motion.passing``.
    """
    moving = motion.probability(state.logit)
    rho = np.clip(state.rho, *guess.limits)
    relative = state.info * rho**2
    log_rho = _completed(rho, relative, moving, guess, passing)
    # relative information: what counts is the error in percent
    weight = (np.minimum(relative, 1e6) * (1 - moving) + 0.1).astype(np.float32)
    smooth = guided_mean(log_rho, np.clip(weight, *SMOOTHING_INFO), grey, step)
    support = cv2.blur(weight, _window(step))
    sigma = np.sqrt(SIGMA_GAIN**2 / np.maximum(support, 1e-3) + SIGMA_FLOOR**2)
    confidence = _erf(0.1 / (sigma * np.float32(np.sqrt(2)))) * (1 - 0.8 * moving)
    depth = np.clip(cv2.exp(-smooth), 1e-4, 1e5)
    return depth, np.clip(enlarge(confidence, step, grey.shape), 0, 1)


def _completed(
    rho: Array, relative: Array, moving: Array, guess: Guess, passing: tuple[Array, Array]
) -> Array:
    """Return log inverse depth (h, w) everywhere from where its ``relative`` information tells it."""
    relief, measured = guess.relief, relative
    if relief is None:
        relief = np.zeros_like(rho)  # the guess is of the map's patches: it counts
    else:
        measured = relative - guess.info * rho**2
    # flow bleeds over a mover's edge: what is close to it is no witness
    clear = np.maximum(1 - cv2.dilate(2 * moving, np.ones((HALO, HALO))), 0)
    weight = clear * np.clip(measured, 0, KNOWN_INFO) / SIGMA_GAIN**2
    # depth feels edges six times as strongly as votes do (numpy's power is slow)
    across, down = (STIFFNESS * np.square(share * share * share) for share in passing)
    return relief + complete(np.log(rho) - relief, weight, across, down)


def enlarge(values: Array, step: int, shape: tuple[int, ...]) -> Array:  # (h, w) -> (H, W) float32
    """Read a map on the grid at every pixel, bilinearly."""
    out = np.empty(shape, np.float32)
    _kernels_draw.enlarge(values.astype(np.float32), step, out)
    return out


def guided_mean(value: Array, weight: Array, guide: Array, step: int = 1) -> Array:
    """Smooth ``value`` (h, w) along edges of ``guide`` (H, W) and return it at full size.

    Weighted guided filter (He, Sun, Tang 2013) with its coefficients found on the grid (He & Sun 2015).
    """
    size = _window(step)
    value, weight = value.astype(np.float32), weight.astype(np.float32)
    g = guide[::step, ::step]
    total = cv2.blur(weight, size) + 1e-6
    mean_g = cv2.blur(weight * g, size) / total
    mean_v = cv2.blur(weight * value, size) / total
    cov = cv2.blur(weight * g * value, size) / total - mean_g * mean_v
    var = cv2.blur(weight * g * g, size) / total - mean_g * mean_g
    slope = cov / (var + EDGE_VAR)
    offset = mean_v - slope * mean_g
    norm = cv2.blur(total, size)
    slope, offset = cv2.blur(slope * total, size) / norm, cv2.blur(offset * total, size) / norm
    out = np.empty(guide.shape, np.float32)
    _kernels_draw.along(slope, offset, guide, step, out)
    return out


def _window(step: int) -> tuple[int, int]:
    """Return the sides, in grid pixels, over which a drawn map is smoothed."""
    side = 2 * max(1, round(SMOOTHING_REACH / step)) + 1
    return side, side


def _erf(x: Array) -> Array:
    """Return the error function within 4e-4."""
    return np.asarray(np.tanh(x * (1.12838 + 0.10277 * x * x)))
