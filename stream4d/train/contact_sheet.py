"""Pictures of training data, to be looked at: colour, depth, flow, masks and occlusion side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stream4d.train.clip import ClipBatch

Picture = npt.NDArray[np.uint8]


def flow_picture(flow: Tensor, reach: float) -> Tensor:  # (H, W, 2) -> (H, W, 3) in [0, 1]
    """Colour flow by direction (hue) and length (saturation, full at ``reach`` pixels)."""
    angle = torch.atan2(flow[..., 1], flow[..., 0])
    length = (flow.norm(dim=-1) / max(reach, 0.1)).clamp(max=1)
    hues = torch.stack([angle, angle - 2.0944, angle + 2.0944], -1).cos() * 0.5 + 0.5
    white = torch.ones_like(hues)
    picture: Tensor = white - length[..., None] * (1 - hues)
    return picture


def depth_picture(depth: Tensor, valid: Tensor) -> Tensor:  # (H, W) -> (H, W, 3)
    """Show nearness, linear in inverse depth; unknown pixels are dark red."""
    near = torch.where(valid, 1 / depth.clamp(min=1e-3), 0.0)
    shade = (near / near.flatten().quantile(0.98).clamp(min=1e-6)).clamp(0, 1)
    grey = shade[..., None].expand(*shade.shape, 3)
    return torch.where(valid[..., None], grey, torch.tensor([0.3, 0.0, 0.0]))


def _tinted(rgb: Tensor, mask: Tensor, colour: tuple[float, float, float]) -> Tensor:
    tint = torch.tensor(colour)
    return torch.where(mask[..., None], 0.5 * rgb + 0.5 * tint, rgb)


def contact_sheet(batch: ClipBatch, clips: int = 8) -> Picture:
    """Draw one row a clip: first, second and last frame, depth, flow, mask (green) with occlusion (red).

    Args:
        batch: any clips.
        clips: most rows to draw.

    Returns:
        (rows · H, 6 · W, 3) uint8 RGB.
    """
    batch = batch.clip(slice(0, clips)).to("cpu")
    rows = []
    for b in range(len(batch.rgb)):
        rgb = batch.rgb[b].permute(0, 2, 3, 1)
        valid_flow = batch.valid_flow[b, 0]
        flow = torch.where(valid_flow[..., None], batch.flow[b, 0], 0.0)
        reach = float(flow.norm(dim=-1).quantile(0.95))
        labels = _tinted(rgb[0], batch.motion_mask[b, 0], (0, 1, 0))
        labels = _tinted(labels, batch.occluded[b, 0] & valid_flow, (1, 0, 0))
        depth = depth_picture(batch.depth[b, 0], batch.valid_depth[b, 0])
        cells = [rgb[0], rgb[1], rgb[-1], depth, flow_picture(flow, reach), labels]
        rows.append(torch.cat(cells, 1))
    return (torch.cat(rows) * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def main() -> None:
    """Render clips and write their contact sheet."""
    from stream4d.train.scenes import SceneOptions, render_clips

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("output", type=Path, help="image to write, e.g. sheet.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(192, 256), metavar=("H", "W"))
    parser.add_argument("--photos", help="folder of photos to cut textures from")
    args = parser.parse_args()
    options = SceneOptions(photo_dir=args.photos)
    batch = render_clips(args.seed, args.clips, args.frames, tuple(args.size), "cpu", options)
    cv2.imwrite(str(args.output), contact_sheet(batch, args.clips)[..., ::-1])


if __name__ == "__main__":
    main()
