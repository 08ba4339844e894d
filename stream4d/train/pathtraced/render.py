"""Blender's path tracer set for speed: noisy colour, denoised; depth in a second pass at the pixel centres."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # before cv2 is imported anywhere

import bpy
import cv2
import numpy as np
from mathutils import Matrix

from stream4d.errors import TrainingError
from stream4d.packets import Array

_BLENDER_FROM_CV = np.diag([1.0, -1.0, -1.0, 1.0])
"""Blender's cameras look along -z with y up."""
_NOTHING_M = 1e6
"""Blender writes 1e10 where a ray leaves the scene."""


class Renderer:
    """Cycles on one CPU thread."""

    def __init__(self, size: tuple[int, int], scratch: Path, samples: int) -> None:
        self.width, self.height = size
        self._scratch = scratch
        self._samples = samples
        bpy.ops.wm.read_factory_settings(use_empty=True)
        self.scene = scene = bpy.context.scene
        scene.render.engine = "CYCLES"
        scene.render.resolution_x, scene.render.resolution_y = size
        scene.render.threads_mode, scene.render.threads = "FIXED", 1
        scene.render.use_persistent_data = True
        scene.world = bpy.data.worlds.new("world")
        scene.world.use_nodes = True
        scene.world.light_settings.distance = 1.5
        self._settle_light()
        self._outputs()

    def _settle_light(self) -> None:
        cycles = self.scene.cycles
        cycles.device = "CPU"
        cycles.use_adaptive_sampling = cycles.use_auto_tile = cycles.use_light_tree = False
        cycles.caustics_reflective = cycles.caustics_refractive = False
        cycles.max_bounces = cycles.diffuse_bounces = cycles.glossy_bounces = 1
        cycles.transparent_max_bounces = 8
        # What further bounces would add comes from the ambient light, weakened in corners: two thirds of the cost.
        cycles.use_fast_gi, cycles.fast_gi_method, cycles.ao_bounces_render = True, "REPLACE", 1
        cycles.denoiser, cycles.denoising_prefilter = "OPENIMAGEDENOISE", "FAST"

    def _outputs(self) -> None:
        """Have colour, depth and object index written as floating-point images."""
        scene = self.scene
        layer = scene.view_layers[0]
        layer.use_pass_z = layer.use_pass_object_index = True
        layer.pass_alpha_threshold = 0.5
        scene.use_nodes = True
        tree = scene.node_tree
        tree.nodes.clear()
        source = tree.nodes.new("CompositorNodeRLayers")
        target = tree.nodes.new("CompositorNodeOutputFile")
        target.base_path = str(self._scratch)
        target.format.file_format, target.format.color_depth = "OPEN_EXR", "32"
        target.format.exr_codec = "NONE"
        target.file_slots.clear()
        # OpenCV reads no EXR with a single channel: depth and index travel as red and green.
        geometry = tree.nodes.new("CompositorNodeCombineColor")
        tree.links.new(source.outputs["Depth"], geometry.inputs[0])
        tree.links.new(source.outputs["IndexOB"], geometry.inputs[1])
        for name, socket in (
            ("colour", source.outputs["Image"]),
            ("geometry", geometry.outputs[0]),
        ):
            target.file_slots.new(name)
            tree.links.new(socket, target.inputs[name])

    def set_camera(self, fov_rad: float, far_m: float) -> Array:  # (3, 3) K
        """Put a camera of this field of view into the scene; it sees nothing beyond ``far_m``."""
        data = bpy.data.cameras.new("camera")
        data.sensor_fit, data.angle = "HORIZONTAL", fov_rad
        data.clip_start, data.clip_end = 0.01, far_m
        if self.scene.camera is not None:
            bpy.data.objects.remove(self.scene.camera)
        self.scene.camera = bpy.data.objects.new("camera", data)
        self.scene.collection.objects.link(self.scene.camera)
        focal = self.width / 2 / np.tan(fov_rad / 2)
        # Blender's image centre is the corner between pixels: minus half in coordinates of pixel centres.
        return np.array(
            [[focal, 0, (self.width - 1) / 2], [0, focal, (self.height - 1) / 2], [0, 0, 1]]
        )

    def place_camera(self, world_from_cam: Array) -> None:
        """Set the camera's pose."""
        self.scene.camera.matrix_world = Matrix((world_from_cam @ _BLENDER_FROM_CV).tolist())

    def colour(self, seed: int) -> Array:  # (H, W, 3) float32, linear
        """Render what the camera sees."""
        cycles = self.scene.cycles
        cycles.samples, cycles.use_denoising, cycles.max_bounces = self._samples, True, 1
        cycles.pixel_filter_type, cycles.filter_width = "BLACKMAN_HARRIS", 1.5
        cycles.seed = seed
        self._render()
        return self._read("colour")

    def depth_and_index(self) -> tuple[Array, Array]:
        """Render z-depth (H, W) in metres, 0 for nothing, and the pass index of the object seen (H, W) uint8."""
        cycles = self.scene.cycles
        cycles.samples, cycles.use_denoising, cycles.max_bounces = 1, False, 0
        cycles.pixel_filter_type, cycles.filter_width = "BOX", 0.01  # exactly at the pixel centre
        self._render()
        depth, index = np.moveaxis(self._read("geometry"), -1, 0)[:2]
        depth = np.where(depth < _NOTHING_M, depth, 0).astype(np.float32)
        return depth, np.round(index).astype(np.uint8)

    def _render(self) -> None:
        bpy.ops.render.render()

    def _read(self, name: str) -> Array:  # (H, W, 3) float32
        """Read one of the images just written."""
        path = next(self._scratch.glob(f"{name}*.exr"), None)
        image = None if path is None else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None:
            raise TrainingError(f"Blender wrote no image {name!r} into {str(self._scratch)!r}")
        return np.ascontiguousarray(image[..., 2::-1])  # BGR or BGRA


def develop(rng: np.random.Generator, linear: Array) -> Array:  # (T, H, W, 3) -> uint8
    """Expose, tint and gamma-code a clip as a camera would, with a little vignetting and noise."""
    light = linear.mean(-1)
    key = float(np.exp(np.log(light + 1e-4).mean()))
    exposure = rng.uniform(0.10, 0.28) / max(key, 1e-4)
    exposure = min(exposure, rng.uniform(1.0, 3.0) / max(float(np.quantile(light, 0.95)), 1e-4))
    drift = np.exp(0.01 * rng.normal(size=len(linear)).cumsum())[:, None, None, None]
    tint = rng.uniform(0.92, 1.08, 3)
    H, W = linear.shape[1:3]
    v, u = np.mgrid[-1 : 1 : H * 1j, -1 : 1 : W * 1j]
    vignette = 1 - rng.uniform(0, 0.2) * (u**2 + v**2)[..., None] / 2
    exposed = linear * exposure * drift * tint * vignette
    if rng.random() < 0.6:  # a soft shoulder instead of hard clipping
        exposed = 1.25 * exposed / (1 + 0.6 * exposed)
    exposed = np.clip(exposed, 0, 1)
    coded = np.where(exposed < 0.0031308, 12.92 * exposed, 1.055 * exposed ** (1 / 2.4) - 0.055)
    coded = coded + rng.normal(0, rng.uniform(0, 0.012), coded.shape)
    return (np.clip(coded, 0, 1) * 255).round().astype(np.uint8)
