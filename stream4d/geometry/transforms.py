"""SE(3) and Sim(3) as 4×4 matrices: exp/log, inverse, action on points, adjoint, quaternions at file borders.

Composition is ``@``: ``world_from_cam = world_from_window @ window_from_cam``. A similarity is
``[[scale * R, t], [0, 1]]``. Tangent vectors are ``(rho, phi)`` for se(3) and ``(rho, phi, sigma)`` for sim(3),
with translation first. Leading dimensions are free; everything is float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_SMALL = 1e-4
"""Below this angle the closed forms lose digits and their series (error ~ angle**4) are exact to float64."""
_NODES, _WEIGHTS = (np.polynomial.legendre.leggauss(16) + np.array([[1.0], [0.0]])) / 2
"""Gauss–Legendre quadrature over [0, 1]."""


def hat(v: Array) -> Array:  # (..., 3) -> (..., 3, 3)
    """Return the skew matrix with ``hat(v) @ w == cross(v, w)``."""
    v = np.asarray(v, np.float64)
    out = np.zeros((*v.shape[:-1], 3, 3))
    out[..., 2, 1], out[..., 0, 2], out[..., 1, 0] = v[..., 0], v[..., 1], v[..., 2]
    out[..., 1, 2], out[..., 2, 0], out[..., 0, 1] = -v[..., 0], -v[..., 1], -v[..., 2]
    return out


def _trig(angle: Array) -> tuple[Array, Array, Array]:
    """Return sin(θ)/θ, (1−cos θ)/θ², (θ−sin θ)/θ³, exact near zero."""
    small = angle < _SMALL
    safe = np.where(small, 1.0, angle)
    sq = angle * angle
    a = np.where(small, 1 - sq / 6, np.sin(safe) / safe)
    b = np.where(small, 0.5 - sq / 24, 2 * np.sin(safe / 2) ** 2 / safe**2)
    c = np.where(small, 1 / 6 - sq / 120, (safe - np.sin(safe)) / safe**3)
    return a, b, c


def so3_exp(phi: Array) -> Array:  # (..., 3) -> (..., 3, 3)
    """Return the rotation by ``|phi|`` radians about ``phi`` (Rodrigues)."""
    phi = np.asarray(phi, np.float64)
    a, b, _ = _trig(np.linalg.norm(phi, axis=-1))
    S = hat(phi)
    return np.eye(3) + a[..., None, None] * S + b[..., None, None] * (S @ S)


def so3_log(R: Array) -> Array:  # (..., 3, 3) -> (..., 3)
    """Return the rotation vector of ``R``, angle in [0, π]; goes through the quaternion, so π is safe."""
    q = quat_wxyz_from_rotation(R)
    q = np.where(q[..., :1] < 0, -q, q)
    norm = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    small = norm < 1e-9
    angle = 2 * np.arctan2(norm, q[..., :1])
    return q[..., 1:] * np.where(small, 2.0, angle / np.where(small, 1.0, norm))


def project_to_so3(M: Array) -> Array:  # (..., 3, 3) -> (..., 3, 3)
    """Return the rotation nearest to ``M`` in the Frobenius norm (SVD)."""
    U, _, Vt = np.linalg.svd(np.asarray(M, np.float64))
    sign = np.linalg.det(U @ Vt)
    U = U.copy()
    U[..., :, 2] *= sign[..., None]
    return U @ Vt


def rigid(R: Array, t: Array) -> Array:  # (..., 3, 3), (..., 3) -> (..., 4, 4)
    """Put ``R`` and ``t`` into a 4×4 matrix."""
    R, t = np.asarray(R, np.float64), np.asarray(t, np.float64)
    out = np.zeros((*np.broadcast_shapes(R.shape[:-2], t.shape[:-1]), 4, 4))
    out[..., :3, :3], out[..., :3, 3], out[..., 3, 3] = R, t, 1.0
    return out


def square(poses: Array) -> Array:  # (..., 3, 4) -> (..., 4, 4)
    """Complete transforms by their last row."""
    return rigid(poses[..., :3], poses[..., 3])


def similarity(scale: Array | float, R: Array, t: Array) -> Array:  # -> (..., 4, 4)
    """Return ``x -> scale * R @ x + t`` as a 4×4 matrix."""
    return rigid(np.asarray(scale, np.float64)[..., None, None] * np.asarray(R, np.float64), t)


def scale_of(T: Array) -> Array:  # (..., 4, 4) -> (...)
    """Return the scale of a similarity (cube root of the determinant)."""
    return np.cbrt(np.linalg.det(np.asarray(T, np.float64)[..., :3, :3]))


def decompose(T: Array) -> tuple[Array, Array, Array]:
    """Split a similarity into ``scale (...)``, ``R (..., 3, 3)``, ``t (..., 3)``."""
    T = np.asarray(T, np.float64)
    scale = scale_of(T)
    return scale, T[..., :3, :3] / scale[..., None, None], T[..., :3, 3].copy()


def without_scale(T: Array) -> Array:  # (..., 4, 4) -> (..., 4, 4)
    """Drop the scale of a similarity and clean its rotation: the pose part, rigid to rounding."""
    T = np.asarray(T, np.float64)
    return rigid(project_to_so3(T[..., :3, :3]), T[..., :3, 3])


def invert(T: Array) -> Array:  # (..., 4, 4) -> (..., 4, 4)
    """Invert a rigid transform or a similarity."""
    scale, R, t = decompose(T)
    Rt = np.swapaxes(R, -1, -2) / scale[..., None, None]
    return rigid(Rt, -(Rt @ t[..., None])[..., 0])


def transform_points(T: Array, points: Array) -> Array:
    """Apply ``T (..., 4, 4)`` to ``points (..., *, 3)``; the result is float64.

    ``points`` has any number of dimensions between T's leading ones and the last: (T, 4, 4) takes (T, H, W, 3).
    """
    T, points = np.asarray(T, np.float64), np.asarray(points, np.float64)
    lead = T.shape[:-2]
    extra = points.ndim - 1 - len(lead)
    flat = points.reshape(*points.shape[: points.ndim - 1 - extra], -1, 3) if lead else points
    if not lead:
        return flat @ T[:3, :3].T + T[:3, 3]
    moved = flat @ np.swapaxes(T[..., :3, :3], -1, -2) + T[..., None, :3, 3]
    return moved.reshape(*moved.shape[: len(lead)], *points.shape[len(lead) :])


def _left_jacobian(phi: Array) -> Array:
    _, b, c = _trig(np.linalg.norm(phi, axis=-1))
    S = hat(phi)
    return np.eye(3) + b[..., None, None] * S + c[..., None, None] * (S @ S)


def se3_exp(xi: Array) -> Array:  # (..., 6) -> (..., 4, 4)
    """Return the rigid transform of the twist ``(rho, phi)``."""
    xi = np.asarray(xi, np.float64)
    rho, phi = xi[..., :3], xi[..., 3:]
    return rigid(so3_exp(phi), (_left_jacobian(phi) @ rho[..., None])[..., 0])


def se3_log(T: Array) -> Array:  # (..., 4, 4) -> (..., 6)
    """Return the twist ``(rho, phi)`` with ``se3_exp(xi) == T``; rotation angle below π."""
    T = np.asarray(T, np.float64)
    phi = so3_log(T[..., :3, :3])
    rho = np.linalg.solve(_left_jacobian(phi), T[..., :3, 3:])[..., 0]
    return np.concatenate([rho, phi], axis=-1)


def sim3_exp(xi: Array) -> Array:  # (..., 7) -> (..., 4, 4)
    """Return the similarity of ``(rho, phi, sigma)``: scale ``exp(sigma)``, exact one-parameter subgroup."""
    xi = np.asarray(xi, np.float64)
    phi, sigma = xi[..., 3:6], xi[..., 6]
    t = (_sim3_W(phi, sigma) @ xi[..., :3, None])[..., 0]
    return similarity(np.exp(sigma), so3_exp(phi), t)


def sim3_log(T: Array) -> Array:  # (..., 4, 4) -> (..., 7)
    """Return ``(rho, phi, sigma)`` with ``sim3_exp(xi) == T``."""
    scale, R, t = decompose(T)
    phi, sigma = so3_log(R), np.log(scale)
    rho = np.linalg.solve(_sim3_W(phi, sigma), t[..., None])[..., 0]
    return np.concatenate([rho, phi, sigma[..., None]], axis=-1)


def _sim3_W(phi: Array, sigma: Array) -> Array:
    """Return ∫₀¹ exp(τ σ) exp(τ hat(φ)) dτ by 16-point Gauss–Legendre quadrature.

    The integrand is entire and its exponent at most a few units, so that the rule is exact to rounding; the
    closed form has three removable singularities (Eade, "Lie groups for 2D and 3D transformations", 2013).
    """
    tau = _NODES.reshape(-1, *(1,) * phi[..., 0].ndim)
    grow = _WEIGHTS.reshape(tau.shape) * np.exp(tau * sigma)
    sine, cosine, _ = _trig(tau * np.linalg.norm(phi, axis=-1))
    a, b, c = grow.sum(0), (grow * tau * sine).sum(0), (grow * tau**2 * cosine).sum(0)
    S = hat(phi)
    return a[..., None, None] * np.eye(3) + b[..., None, None] * S + c[..., None, None] * (S @ S)


def adjoint(T: Array) -> Array:  # (..., 4, 4) rigid -> (..., 6, 6)
    """Return the matrix with ``T @ se3_exp(xi) == se3_exp(adjoint(T) @ xi) @ T``."""
    T = np.asarray(T, np.float64)
    R = T[..., :3, :3]
    out = np.zeros((*T.shape[:-2], 6, 6))
    out[..., :3, :3] = out[..., 3:, 3:] = R
    out[..., :3, 3:] = hat(T[..., :3, 3]) @ R
    return out


def interpolate(a: Array, b: Array, weight: float) -> Array:
    """Go from rigid ``a`` (weight 0) to ``b`` (weight 1) along the screw motion; weights outside extrapolate."""
    return without_scale(se3_exp(weight * se3_log(b @ invert(a))) @ a)


def quat_wxyz_from_rotation(R: Array) -> Array:  # (..., 3, 3) -> (..., 4)
    """Return the unit quaternion (w, x, y, z) of ``R``, by the largest of the four components (Shepperd)."""
    R = np.asarray(R, np.float64)
    d = np.diagonal(R, axis1=-2, axis2=-1)
    trace = d.sum(-1)
    table = np.empty((*R.shape[:-2], 4, 4))  # 4 q qᵀ
    table[..., 0, 0] = 1 + trace
    for i, (j, k) in enumerate(((1, 2), (2, 0), (0, 1))):
        table[..., i + 1, i + 1] = 1 + 2 * d[..., i] - trace
        table[..., 0, i + 1] = table[..., i + 1, 0] = R[..., k, j] - R[..., j, k]
        table[..., j + 1, k + 1] = table[..., k + 1, j + 1] = R[..., k, j] + R[..., j, k]
    choice = np.argmax(np.diagonal(table, axis1=-2, axis2=-1), axis=-1)
    q = np.take_along_axis(table, choice[..., None, None], axis=-2)[..., 0, :]
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


def rotation_from_quat_wxyz(q: Array) -> Array:  # (..., 4) -> (..., 3, 3)
    """Return the rotation of the quaternion (w, x, y, z); its norm does not matter."""
    q = np.asarray(q, np.float64)
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    S = hat(q[..., 1:])
    return np.eye(3) + 2 * q[..., :1, None] * S + 2 * (S @ S)
