"""The 9-number camera encoding of VGGT and Depth Anything 3: [t (3), quaternion xyzw (4), fov_h, fov_w].

VGGT encodes world-to-camera, Depth Anything 3 camera-to-world; the functions here do not care. The principal point
is the middle of the image, (W / 2, H / 2) in integer pixel coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_from_quat_xyzw(quat: Tensor) -> Tensor:  # (..., 4), any length -> (..., 3, 3)
    """Turn quaternions, scalar last, into rotation matrices."""
    x, y, z, w = quat.unbind(-1)
    s = 2.0 / (quat * quat).sum(-1)
    rows = [
        1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w),
        s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w),
        s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def quat_xyzw_from_matrix(R: Tensor) -> Tensor:  # (..., 3, 3) -> (..., 4) with w >= 0
    """Turn rotation matrices into unit quaternions, scalar last.

    Of the four equivalent formulas the one with the largest divisor is taken, so that none is ill-conditioned.
    """
    m = R.unflatten(-2, (3,)) if R.ndim == 2 else R
    d0, d1, d2 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squares = torch.stack(
        [1 + d0 - d1 - d2, 1 - d0 + d1 - d2, 1 - d0 - d1 + d2, 1 + d0 + d1 + d2], dim=-1
    )
    lengths = squares.clamp(min=0).sqrt()  # 2|x|, 2|y|, 2|z|, 2|w|
    a = m[..., 2, 1] - m[..., 1, 2]
    b = m[..., 0, 2] - m[..., 2, 0]
    c = m[..., 1, 0] - m[..., 0, 1]
    e = m[..., 1, 0] + m[..., 0, 1]
    f = m[..., 0, 2] + m[..., 2, 0]
    g = m[..., 2, 1] + m[..., 1, 2]
    candidates = torch.stack(
        [
            torch.stack([squares[..., 0], e, f, a], dim=-1),
            torch.stack([e, squares[..., 1], g, b], dim=-1),
            torch.stack([f, g, squares[..., 2], c], dim=-1),
            torch.stack([a, b, c, squares[..., 3]], dim=-1),
        ],
        dim=-2,
    ) / (2 * lengths[..., None].clamp(min=0.1))
    best = lengths.argmax(dim=-1)
    quat = torch.take_along_dim(candidates, best[..., None, None], dim=-2)[..., 0, :]
    return torch.where(quat[..., 3:] < 0, -quat, quat)


def decode_cameras(encoding: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Split encodings into (..., 3, 4) matrices [R | t] and (..., 3, 3) intrinsics of an image of ``size`` (H, W)."""
    H, W = size
    R = matrix_from_quat_xyzw(encoding[..., 3:7])
    matrix = torch.cat([R, encoding[..., :3, None]], dim=-1)
    K = torch.zeros(*encoding.shape[:-1], 3, 3, dtype=encoding.dtype, device=encoding.device)
    K[..., 0, 0] = W / 2 / torch.tan(encoding[..., 8] / 2)
    K[..., 1, 1] = H / 2 / torch.tan(encoding[..., 7] / 2)
    K[..., 0, 2] = W / 2
    K[..., 1, 2] = H / 2
    K[..., 2, 2] = 1
    return matrix, K


def encode_cameras(matrix: Tensor, K: Tensor, size: tuple[int, int]) -> Tensor:
    """Invert `decode_cameras`; the principal point is lost."""
    H, W = size
    fov_h = 2 * torch.atan(H / 2 / K[..., 1, 1])
    fov_w = 2 * torch.atan(W / 2 / K[..., 0, 0])
    quat = quat_xyzw_from_matrix(matrix[..., :3, :3])
    return torch.cat([matrix[..., :3, 3], quat, fov_h[..., None], fov_w[..., None]], dim=-1)
