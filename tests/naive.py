"""Slow twins of the kernels: the textbook in a few lines of numpy."""

from __future__ import annotations

import numpy as np

from stream4d.geometry import transforms
from stream4d.geometry.flow import sample
from stream4d.packets import Array


def umeyama(
    source: Array, target: Array, weights: Array | None = None, *, with_scale: bool = True
) -> Array:
    """Return the similarity (4, 4) that takes ``source`` (N, 3) to ``target`` in weighted least squares.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991.
    """
    w = np.ones(len(source)) if weights is None else weights
    w = w / w.sum()
    mean_s, mean_t = w @ source, w @ target
    A, B = source - mean_s, target - mean_t
    U, D, Vt = np.linalg.svd((B * w[:, None]).T @ A)
    S = np.diag([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))])
    R = U @ S @ Vt
    scale = (D * np.diag(S)).sum() / (w @ (A**2).sum(-1)) if with_scale else 1.0
    return transforms.similarity(scale, R, mean_t - scale * R @ mean_s)


def residual_lengths(s: Array, t: Array, T: Array) -> Array:
    """Twin of ``geometry._kernels.residual_lengths``."""
    return np.linalg.norm(t - transforms.transform_points(T, s), axis=1)


def weighted_sums(s: Array, t: Array, w: Array, T: Array, scale: float, frame: Array) -> Array:
    """Twin of ``geometry._kernels.weighted_sums``."""
    s, t = (s - frame[:3]) * frame[6], (t - frame[3:6]) * frame[7]
    valid = np.isfinite(s.sum(-1) + t.sum(-1) + w) & (w > 0)
    s, t, w = s[valid], t[valid], w[valid]
    near, total = 0.0, w.sum()
    if scale > 0:
        sq = ((t - transforms.transform_points(T, s)) ** 2).sum(-1)
        near = w[sq < scale**2].sum()
        w = w * (scale**2 / (scale**2 + sq)) ** 2
    cross = np.einsum("n,ni,nj->ij", w, t, s).ravel()
    square = (w * (s**2).sum(-1)).sum()
    return np.concatenate([[w.sum()], w @ s, w @ t, cross, [square, near, total]])


def patch_pixel(cam: Array, ray: Array, rho: float, target: Array, host: Array) -> Array:
    """Return the pixel (2,) at which ``target`` (3, 4) sees a patch of ``host`` (3, 4); NaN behind it."""
    R = target[:, :3] @ host[:, :3].T
    q = R @ ray + rho * (target[:, 3] - R @ host[:, 3])
    return cam[:2] * q[:2] / q[2] + cam[2:] if q[2] > 1e-4 else np.full(2, np.nan)


def moved(pose: Array, xi: Array) -> Array:
    """Apply a left twist to a camera-from-world (3, 4): rotation by exp, translation added."""
    out = transforms.so3_exp(xi[3:]) @ pose
    out[:, 3] += xi[:3]
    return out


def differences(function, n: int, step: float = 1e-6) -> Array:  # type: ignore[no-untyped-def]
    """Return the Jacobian of ``function`` of n numbers at zero, by central differences."""
    columns = []
    for i in range(n):
        e = np.zeros(n)
        e[i] = step
        columns.append((function(e) - function(-e)) / (2 * step))
    return np.stack(columns, axis=-1)


def similarity_log(S: Array) -> Array:
    """Return the (7,) logarithm (rho, phi, sigma) of a 4×4 similarity, by the series of the matrix logarithm.

    Square roots bring the matrix near the identity, where the series converges.
    """
    M, times = S.copy(), 0
    while np.abs(M - np.eye(4)).max() > 0.05:
        root = np.eye(4)  # Newton's iteration of Denman and Beavers
        inverse = np.eye(4)
        root = M.copy()
        for _ in range(30):
            root, inverse = (root + np.linalg.inv(inverse)) / 2, (inverse + np.linalg.inv(root)) / 2
        M, times = root, times + 1
    X = M - np.eye(4)
    log = sum((-1) ** (k + 1) * np.linalg.matrix_power(X, k) / k for k in range(1, 16)) * 2**times
    phi = np.array([log[2, 1] - log[1, 2], log[0, 2] - log[2, 0], log[1, 0] - log[0, 1]]) / 2
    return np.concatenate([log[:3, 3], phi, [np.trace(log) / 3]])


def similarity_adjoint(S: Array) -> Array:
    """Return the 7×7 with ``S exp(xi) S⁻¹ = exp(out xi)``, by differences."""
    inverse = np.linalg.inv(S)
    return differences(
        lambda xi: transforms.sim3_log(S @ transforms.sim3_exp(xi) @ inverse), 7, 1e-5
    )


def assembled(D: Array, off: Array, nodes: Array) -> Array:
    """Return the dense matrix of diagonal blocks (n, k, k) and off-diagonal blocks of pairs of nodes."""
    n, k = D.shape[:2]
    H = np.zeros((n, k, n, k))
    H[np.arange(n), :, np.arange(n)] = D
    for (a, b), block in zip(nodes, off, strict=True):
        H[a, :, b] += block
        H[b, :, a] += block.T
    return H.reshape(n * k, n * k)


def graph_system(poses: Array, edges, weight: Array, free: Array) -> tuple[Array, Array]:  # type: ignore[no-untyped-def]
    """Return the Gauss–Newton system of the free nodes of a pose graph, Jacobian by differences."""
    whitened = np.linalg.cholesky(np.linalg.inv(edges.covariance)).swapaxes(1, 2)
    whitened = whitened * np.sqrt(weight)[:, None, None]
    columns = np.cumsum(free) - 1

    def residuals(x: Array) -> Array:
        xi = np.where(free[:, None], x.reshape(-1, 7)[columns], 0.0)
        moved_poses = poses @ transforms.sim3_exp(xi)
        a, b = edges.nodes.T
        error = np.linalg.inv(edges.measured) @ np.linalg.inv(moved_poses[a]) @ moved_poses[b]
        return np.einsum("eij,ej->ei", whitened, transforms.sim3_log(error)).ravel()

    J = differences(residuals, 7 * int(free.sum()), 1e-5)
    return J.T @ J, J.T @ residuals(np.zeros(J.shape[1]))


def seen_at(cam: Array, rays: Array, rho: Array, P: Array) -> Array:
    """Return pixels (..., 2) of points on ``rays`` (..., 3) at inverse depth ``rho`` (...), seen from P (3, 4)."""
    q = rays @ P[:, :3].T + rho[..., None] * P[:, 3]
    return cam[:2] * q[..., :2] / q[..., 2:] + cam[2:]


def fit_pixels(
    cam: Array, poses: Array, uv: Array, var: Array, step: int, guess: Array, info: Array, nearest: float
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Twin of ``_kernels_dense.fit_pixels`` by trying all depths: depth, squares per view, those across, views."""
    h, w = guess.shape
    u, v = np.meshgrid(step * np.arange(w), step * np.arange(h))
    rays = np.stack([(u - cam[2]) / cam[0], (v - cam[3]) / cam[1], np.ones((h, w))], -1)
    tried = np.linspace(0, nearest, 6001)[:, None, None] * np.ones((h, w))

    def squares(rho: Array) -> Array:  # (n, h, w) -> (K, n, h, w)
        return np.stack(
            [
                ((seen_at(cam, rays, rho, P) - at) ** 2).sum(-1) / s
                for P, at, s in zip(poses, uv, var, strict=True)
            ]
        )

    cost = np.nansum(squares(tried), axis=0) + info * (tried - guess) ** 2
    best = np.take_along_axis(tried, cost.argmin(0)[None], 0)
    views = np.isfinite(uv[..., 0]).sum(0)
    across = np.zeros((h, w))
    for P, at, s in zip(poses, uv, var, strict=True):
        line = seen_at(cam, rays, best[0] + 1e-5, P) - seen_at(cam, rays, best[0] - 1e-5, P)
        gap = seen_at(cam, rays, best[0], P) - at
        cross = (gap[..., 0] * line[..., 1] - gap[..., 1] * line[..., 0]) ** 2
        across += np.nan_to_num(cross / (line**2).sum(-1) / s)
    per_view = np.maximum(views, 1)
    return best[0], np.nansum(squares(best), axis=0)[0] / per_view, across / per_view, views


def find_doubts(flow: Array, back: Array, sigma: Array, step: int) -> Array:
    """Twin of ``_kernels_dense.find_doubts``."""
    H, W = sigma.shape
    pixels = np.stack(np.meshgrid(np.arange(W), np.arange(H)), -1)
    missed = ((flow + sample(back, pixels + flow)) ** 2).sum(-1) > 1.0 + 0.01 * (flow**2).sum(-1)
    return np.where(missed | ~(sigma < 4.0), np.inf, sigma)[::step, ::step]


def follow_link(
    flow: Array, doubts: Array, step: int, uv: Array, var: Array
) -> tuple[Array, Array]:
    """Twin of ``_kernels_dense.follow_link``."""
    nearest = np.rint(uv / step).astype(int)
    nearest = np.clip(nearest, 0, [doubts.shape[1] - 1, doubts.shape[0] - 1])
    s = doubts[nearest[..., 1], nearest[..., 0]]
    out = np.where((s < 4.0)[..., None], uv + sample(flow, uv / step), np.nan)
    return out, np.where(np.isnan(out[..., 0]), var, var + s**2)


def halve(sums: Array, weight: Array, across: Array, down: Array) -> tuple[Array, ...]:
    """Twin of ``_kernels_completion.halve``."""

    def even(x: Array, mode: str) -> Array:
        return np.pad(x, [(0, n % 2) for n in x.shape], mode)  # type: ignore[call-overload,no-any-return]

    def gathered(x: Array) -> Array:
        x = even(x, "constant")
        return np.asarray(x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).sum((1, 3)))

    def joined(across: Array) -> Array:
        resistance = 1 / even(across, "edge")
        before = np.hstack([resistance[:, :1], resistance[:, 1:-1:2]])
        along = before / 2 + resistance[:, ::2] + resistance[:, 1::2] / 2
        return np.asarray(1 / along[::2] + 1 / along[1::2])

    return gathered(sums), gathered(weight), joined(across), joined(down.T).T


def smooth_rows(value: Array, keep: Array) -> Array:
    """Twin of ``_kernels_dense.smooth_rows`` for one of its arrays: each pixel's value reaches each other one."""
    out = np.zeros_like(value)
    for j in range(value.shape[1]):
        for k in range(value.shape[1]):
            passed = keep[:, min(j, k) + 1 : max(j, k) + 1].prod(axis=1)
            out[:, j] += passed * value[:, k]
    return out


def similarity_system(fit) -> tuple[Array, Array, Array]:  # type: ignore[no-untyped-def]
    """Return the 7×7 system of a similarity fit, by differences, and squared errors in σ².

    ``fit`` has ``pixel(S, n, k, rho)``, ``S`` and the arrays that the kernel takes.
    """
    pairs = list(zip(fit.patch, fit.frame, strict=True))
    S = np.vstack([fit.S, [0, 0, 0, 1]])

    def residuals(xi: Array) -> Array:
        moved_S = (S @ transforms.sim3_exp(xi))[:3]
        return np.concatenate([fit.pixel(moved_S, n, k) for n, k in pairs]) - fit.uv.ravel()

    J, r = differences(residuals, 7).reshape(-1, 2, 7), residuals(np.zeros(7)).reshape(-1, 2)
    H, g, errors = np.zeros((7, 7)), np.zeros(7), []
    for (n, k), Jn, rn, (a, b, c) in zip(pairs, J, r, fit.info, strict=True):
        slide = (
            fit.pixel(fit.S, n, k, fit.rho[n] + 1e-6) - fit.pixel(fit.S, n, k, fit.rho[n] - 1e-6)
        ) / 2e-6
        covariance = np.linalg.inv([[a, b], [b, c]]) + fit.rho_var[n] * np.outer(slide, slide)
        W = np.linalg.inv(covariance)
        H, g = H + Jn.T @ W @ Jn, g + Jn.T @ W @ rn
        errors.append(rn @ W @ rn)
    return H, g, np.array(errors)


def bilinear(image: Array, u: Array, v: Array) -> Array:
    """Read an image between pixels; NaN outside."""
    H, W = image.shape
    inside = (u >= 0) & (v >= 0) & (u < W - 1) & (v < H - 1)
    x, y = np.where(inside, u, 0).astype(int), np.where(inside, v, 0).astype(int)
    fx, fy, grey = u - x, v - y, image.astype(np.float64)
    top = grey[y, x] * (1 - fx) + grey[y, x + 1] * fx
    bottom = grey[y + 1, x] * (1 - fx) + grey[y + 1, x + 1] * fx
    return np.where(inside, top * (1 - fy) + bottom * fy, np.nan)


def aligned_position(
    template: Array, image: Array, uv: Array, iterations: int, weak: float
) -> tuple[Array, float]:
    """Move a pixel until the image there looks like the template (n + 2, n + 2); returns it and the correlation.

    Steps go along eigenvectors of the structure tensor above ``weak`` only; gain and bias are free.
    """
    inner = template[1:-1, 1:-1]
    gx = 0.5 * (template[1:-1, 2:] - template[1:-1, :-2])
    gy = 0.5 * (template[2:, 1:-1] - template[:-2, 1:-1])
    G = np.stack([(gx - gx.mean()).ravel(), (gy - gy.mean()).ravel()], axis=-1)
    values, vectors = np.linalg.eigh(G.T @ G)
    keep = np.array([values[0] > weak, True])
    inverse = (vectors[:, keep] / values[keep]) @ vectors[:, keep].T
    half = len(inner) // 2
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1]
    correlation = -1.0
    for _ in range(iterations):
        seen = bilinear(image, uv[0] + dx, uv[1] + dy)
        if not np.isfinite(seen).all():
            return uv, -1.0
        seen, known = seen - seen.mean(), inner - inner.mean()
        correlation = float((seen * known).sum() / np.sqrt((seen**2).sum() * (known**2).sum()))
        r = seen * np.sqrt((known**2).sum() / (seen**2).sum()) - known
        step = inverse @ np.array([(gx * r).sum(), (gy * r).sum()])
        uv = uv - step
        if step @ step < 1e-4:
            break
    return uv, correlation


def found_patch(
    hosts: tuple[Array, ...], target: tuple[Array, ...], cam: Array, uv0: Array, rho: float,
    host: Array, pose: Array, uv: Array, side: int, weak: float,
) -> tuple[Array, float]:  # fmt: skip
    """Twin of ``_kernels_align.align_patches`` for one patch: its target pixel and correlation (−1: lost)."""

    def seen(offset: Array) -> Array:
        ray = np.append((uv0 + offset - cam[2:]) / cam[:2], 1.0)
        return patch_pixel(cam, ray, rho, pose, host)

    warp = np.linalg.inv(differences(seen, 2))
    if not 0.1 <= 1 / np.linalg.det(warp) <= 10:
        return uv, -1.0
    extra = int(np.sqrt(np.linalg.det(warp)) > 1.6)
    dy, dx = np.mgrid[: side + 2, : side + 2] - (side + 1) / 2
    x, y = np.einsum("ij,jhw->ihw", warp, np.stack([dx, dy]) / 2**extra)
    now, result = uv, (uv, -1.0)
    for level in (1, 0):
        centre = uv0 / 2 ** (level + extra)
        template = bilinear(hosts[level + extra], centre[0] + x, centre[1] + y)
        if np.isfinite(template).all():
            moved_to, correlation = aligned_position(
                template, target[level], now / 2**level, 10, weak
            )
            if correlation >= 0.6:
                now = moved_to * 2**level
                result = (now, correlation) if level == 0 else result
    return result


def enlarged(values: Array, step: int, shape: tuple[int, int]) -> Array:  # (h, w) -> (H, W)
    """Twin of ``_kernels_draw.enlarge``: bilinear reading of a grid, its border repeated."""
    out = np.empty(shape)
    last = np.array(values.shape) - 1
    for y, x in np.ndindex(shape):
        (i, j), (v, u) = (y // step, x // step), (y % step / step, x % step / step)
        i1, j1 = min(i + 1, last[0]), min(j + 1, last[1])
        top = (1 - u) * values[i, j] + u * values[i, j1]
        out[y, x] = (1 - v) * top + v * ((1 - u) * values[i1, j] + u * values[i1, j1])
    return out


def gradient_moments(grey: Array, step: int) -> Array:  # (H, W) -> (3, h, w)
    """Twin of ``_kernels_draw.gradient_moments``."""
    gy, gx = np.gradient(grey.astype(np.float64))
    for g in (gx, gy):
        g[[0, -1]] = g[:, [0, -1]] = 0
    H, W = grey.shape
    out = np.zeros((3, -(-H // step), -(-W // step)))
    for y, x in np.ndindex(grey.shape):
        a, b = gx[y, x], gy[y, x]
        out[:, y // step, x // step] += np.array([a * a, a * b, b * b]) / step**2
    return out


def world_rays(rays: Array, poses: Array, host: Array) -> tuple[Array, Array]:
    """Twin of ``_kernels_pose.world_rays``."""
    world_from_cam = np.linalg.inv(transforms.square(poses))[host]
    return (world_from_cam[:, :3, :3] @ rays[..., None])[..., 0], world_from_cam[:, :3, 3]


def followed(flow: Array, sigma: Array, uv: Array) -> tuple[Array, Array]:  # (n, 2), (n,)
    """Twin of ``_kernels_align.follow``: outside the image nothing is known."""
    step, spread = sample(flow, uv), sample(sigma, uv)
    lost = np.isnan(spread)
    return uv + np.where(lost[:, None], 0.0, step), np.where(lost, np.inf, spread)
