"""MonST3R: DUSt3R's network trained on moving scenes, aligned globally inside a sliding window.

Zhang, Herrmann, Hur, Jampani, Darrell, Cole, Sun, Yang, "MonST3R: A Simple Approach for Estimating Geometry in the
Presence of Motion", ICLR 2025. Same names and shapes as DUSt3R 512 (weights: CC BY-NC-SA 4.0 by inheritance,
non-commercial). What is its own: a graph of pairs over several strides, global alignment with flow and smoothness,
and motion masks from ego flow against optical flow. Here all of it runs in a window whose overlap with the last one is
held fixed, so memory is bounded; optical flow is DIS (Kroeger et al., ECCV 2016), which needs no weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from stream4d.geometry.flow import consistency_error
from stream4d.geometry.transforms import similarity
from stream4d.models.alignment import (
    PairSet,
    Scene,
    focals,
    pose_matrices,
)
from stream4d.models.base import ModelCard
from stream4d.models.checkpoint import Checkpoint
from stream4d.models.dis import dis_flow, grey_image
from stream4d.models.dust3r import Dust3rModel, Dust3rSession, Pair, anchored_prediction, fit_image
from stream4d.models.dust3r_net import Dust3rConfig
from stream4d.models.family import check_options, to_prediction
from stream4d.models.first_guess import initial_scene
from stream4d.models.monst3r_alignment import Start, align
from stream4d.models.monst3r_fusion import fused_depth, residual_motion, thinned
from stream4d.models.pair_graph import make_pairs
from stream4d.models.pairs import relative_motion
from stream4d.models.resize import Fit
from stream4d.packets import Array, Prediction, State, VideoInfo, Window

STATIC_PX = 1.5
"""Residual flow in pixels that noise explains: where the motion test is at one half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Monst3rConfig(Dust3rConfig):
    """DUSt3R's config and the alignment."""

    graph: str = "swinstride-3-noncyclic"
    """Pairs of a window: offsets 1, 3, 5, both directions."""
    iterations: int = 100
    """Steps of the alignment per window."""
    align_step: int = 4
    """Every how many pixels the alignment looks; poses, focal and scales need no more."""
    smooth: float = 0.01
    """Weight of the smoothness term; a tenth of it in the second half."""
    flow: float = 0.01
    """Weight of the flow term."""
    depth_prior: float = 0.0
    """Weight of staying near the depth that the pairs say at first (the authors' default: none)."""
    motion: Literal["absolute", "relative"] = "absolute"
    """Motion test: residual flow in pixels, or the authors' min-max per pair."""


class Flows(NamedTuple):
    """Optical flow between two frames, both ways."""

    forward: Array
    """(H, W, 2)."""
    backward: Array
    """(H, W, 2)."""


class Known(NamedTuple):
    """What the last window settled of a frame."""

    world_from_cam: Array
    """(4, 4)."""
    depth: Array
    """(h, w) on the alignment's grid."""


class Monst3rModel(Dust3rModel):
    """MonST3R with incremental global alignment."""

    cards: ClassVar[dict[str, ModelCard]] = {
        "monst3r": ModelCard(
            name="monst3r",
            summary="DUSt3R for moving scenes: windowed global alignment, flow and motion masks",
            paper="MonST3R: Estimating Geometry in the Presence of Motion, Zhang et al., ICLR 2025",
            weights_licence="CC BY-NC-SA 4.0 (inherited from DUSt3R)",
            is_commercial_ok=False,
            resolution="long side 512, multiples of 16",
            is_metric=False,
            streaming="pairs",
            window=6,
            overlap=3,
            parameters_m=571.2,
            hub_id="Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt",
        ),
    }

    @classmethod
    def configure(
        cls, name: str, checkpoint: Checkpoint | None, options: dict[str, Any]
    ) -> Monst3rConfig:
        check_options(Monst3rConfig, options, name)
        config: Monst3rConfig = Monst3rConfig.infer(checkpoint, **options)  # type: ignore[assignment]
        make_pairs(2, config.graph)  # an unknown graph is refused here, not in mid-video
        return config

    def session(self, info: VideoInfo) -> Monst3rSession:
        return Monst3rSession(
            self, info, fit_image(info.width, info.height, self.config.resolution)
        )


class Monst3rSession(Dust3rSession):
    """Pairs, flows and the settled frames of the last window; nothing older."""

    def __init__(self, model: Any, info: VideoInfo, fitted: Fit) -> None:
        super().__init__(model, info, fitted)
        self.decoded: dict[tuple[int, int], Pair] = {}
        self.flows: dict[tuple[int, int], Flows] = {}
        self.known: dict[int, Known] = {}
        self.focal: float | None = None

    def state(self) -> State:
        """Return what the last window settled: poses and coarse depth of its frames, and the focal length."""
        out: State = {} if self.focal is None else {"focal": np.array(self.focal)}
        for index, known in self.known.items():
            out[f"{index}.pose"], out[f"{index}.depth"] = known
        return out

    def restore(self, state: State) -> None:
        """Go on from an earlier ``state``; pairs and flows of the overlap are computed again, equally."""
        self.focal = float(state["focal"]) if "focal" in state else None
        indices = sorted({int(name.split(".")[0]) for name in state if name.endswith(".pose")})
        self.known = {i: Known(state[f"{i}.pose"], state[f"{i}.depth"]) for i in indices}

    def predict(self, window: Window) -> Prediction:
        encoded = self.encode(window)
        if len(encoded) == 1:
            pair = self.pair(encoded[0], encoded[0])
            return anchored_prediction(self.fit, [pair], self.given_K(window))
        edges = make_pairs(len(encoded), self.model.config.graph)
        index = [frame.index for frame in window.frames]
        self.decoded = {
            (index[i], index[j]): self.decoded.get((index[i], index[j]))
            or self.pair(encoded[i], encoded[j])
            for i, j in edges
        }
        flows = self._optical_flow(window, edges)
        full = self._pair_set(index, edges, flows)
        scene, coarse = self._align(window, full)
        return self._prediction(window, full, coarse, scene, flows)

    def _optical_flow(
        self, window: Window, edges: list[tuple[int, int]]
    ) -> dict[tuple[int, int], Flows]:
        """Measure the flow of all pairs i < j, and of all neighbours, at the frames' resolution."""
        grey = [grey_image(frame.rgb) for frame in window.frames]
        wanted = {(i, j) for i, j in edges if i < j} | {(i, i + 1) for i in range(len(grey) - 1)}
        out, kept = {}, {}
        for i, j in sorted(wanted):
            key = (window.frames[i].index, window.frames[j].index)
            if key not in self.flows:
                there, back = (dis_flow(grey[a], grey[b], "medium") for a, b in ((i, j), (j, i)))
                self.flows[key] = Flows(there, back)
            out[i, j] = kept[key] = self.flows[key]
        self.flows = kept
        return out

    def _pair_set(
        self,
        index: list[int],
        edges: list[tuple[int, int]],
        flows: dict[tuple[int, int], Flows],
    ) -> PairSet:
        """Gather pairs and flows at the network's resolution."""
        pairs = [self.decoded[index[i], index[j]] for i, j in edges]
        directed = []
        for i, j in edges:
            found = flows[min(i, j), max(i, j)]
            directed.append(found if i < j else Flows(found.backward, found.forward))

        def stacked(arrays: list[Array]) -> Tensor:
            return torch.from_numpy(np.stack(arrays)).float()

        return PairSet(
            edges=torch.tensor(edges),
            points_i=stacked([p.points1 for p in pairs]),
            points_j=stacked([p.points2 for p in pairs]),
            confidence_i=stacked([p.confidence1 for p in pairs]),
            confidence_j=stacked([p.confidence2 for p in pairs]),
            flow_ij=stacked([self.fit.flow_to_network(f.forward) for f in directed]).movedim(-1, 1),
            flow_ji=stacked([self.fit.flow_to_network(f.backward) for f in directed]).movedim(
                -1, 1
            ),
            is_moving=torch.zeros(len(index), *self.fit.size[::-1], dtype=torch.bool),
        )

    def _align(self, window: Window, full: PairSet) -> tuple[Scene, PairSet]:
        config = self.model.config
        start = self._start(window, thinned(full, config.align_step))
        scene, coarse = align(
            start,
            self._motion,
            iterations=config.iterations,
            smooth=config.smooth,
            flow=config.flow,
            depth_prior=config.depth_prior,
        )
        self._settle([frame.index for frame in window.frames], scene, coarse)
        return scene, coarse

    def _start(self, window: Window, coarse: PairSet) -> Start:
        """Guess the scene from the pairs and from what is given or known: the overlap's frames stay as they were."""
        given_K = [K for K in self.given_K(window) if K is not None]
        focal = float(given_K[0][0, 0]) if given_K else self.focal
        poses = [f.world_from_cam for f in window.frames if f.world_from_cam is not None]
        has_poses = len(poses) == len(window.frames)
        fixed = {
            i: (self.known[frame.index].world_from_cam, self.known[frame.index].depth)
            for i, frame in enumerate(window.frames)
            if frame.index in self.known and not has_poses
        }
        scene = initial_scene(
            coarse,
            shared_focal=True,
            given_focal=None if focal is None else focal / self.model.config.align_step,
            principal_point=self._coarse_principal(),
            fixed=fixed,
            given_poses=poses if has_poses else None,
        )
        free = ["pairs", "log_depth"]
        free += [] if has_poses else ["poses"]
        free += ["focal"] if focal is None else []
        pairs = replace(coarse, world_has_size=bool(fixed) or has_poses)
        return Start(scene, pairs, free, len(fixed))

    def _coarse_principal(self) -> tuple[float, float]:
        """Return the middle of the image in pixels of the alignment's grid."""
        (W, H), step = self.fit.size, self.model.config.align_step
        return (W / 2 - step // 2) / step, (H / 2 - step // 2) / step

    def _motion(self, scene: Scene, coarse: PairSet) -> Array:  # (n, h, w) in [0, 1]
        """Return how probable motion is: residual flow against what noise explains."""
        if self.model.config.motion == "relative":
            return relative_motion(coarse)[0].astype(np.float32)
        return residual_motion(scene, coarse, STATIC_PX / self.model.config.align_step)

    def _settle(self, index: list[int], scene: Scene, coarse: PairSet) -> None:
        """Remember the frames for the next window, and the focal length for good."""
        h, w = coarse.confidence_i.shape[1:]
        R, t = pose_matrices(scene.poses)
        depth = scene.log_depth.exp().view(-1, h, w).numpy()
        self.known = {
            key: Known(
                similarity(1.0, R[i].double().numpy(), t[i].double().numpy()),
                depth[i].astype(np.float64),
            )
            for i, key in enumerate(index)
        }
        if self.focal is None:
            self.focal = float(focals(scene)[0, 0]) * self.model.config.align_step

    def _prediction(
        self,
        window: Window,
        full: PairSet,
        coarse: PairSet,
        scene: Scene,
        flows: dict[tuple[int, int], Flows],
    ) -> Prediction:
        """Fuse the pairs into one depth map per frame, and pack everything."""
        n = len(window.frames)
        W, H = self.fit.size
        world_from_cam = np.stack([self.known[f.index].world_from_cam for f in window.frames])
        depth, confidence = fused_depth(scene, full, coarse, world_from_cam)
        focal = float(focals(scene)[0, 0]) * self.model.config.align_step
        K = np.array([[focal, 0, W / 2], [0, focal, H / 2], [0, 0, 1.0]])
        given = self.given_K(window)
        motion = self._motion(scene, coarse)
        motion = np.stack([cv2.resize(m, (W, H), interpolation=cv2.INTER_LINEAR) for m in motion])
        ahead = np.stack([flows[i, i + 1].forward for i in range(n - 1)]).astype(np.float32)
        back = np.stack([flows[i, i + 1].backward for i in range(n - 1)]).astype(np.float32)
        unsure = [0.5 + 0.5 * consistency_error(a, b) for a, b in zip(ahead, back, strict=True)]
        return to_prediction(
            self.fit,
            depth=depth,
            confidence=confidence,
            K=np.stack([K if k is None else k for k in given]),
            window_from_cam=world_from_cam,
            motion_prob=motion,
            flow=ahead,
            flow_backward=back,
            flow_uncertainty=np.nan_to_num(np.stack(unsure), nan=1e3).astype(np.float32),
        )
