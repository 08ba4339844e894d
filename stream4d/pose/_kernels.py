# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of the pose chain: patch alignment, pose-only refinement, bundle adjustment, depth of a patch.

They see arrays and scalars only; callers check and allocate. Shared words: ``cam`` is (fx, fy, cx, cy); poses are
camera-from-world as (n, 3, 4); a patch is a ray with z = 1 in its host camera and an inverse depth ``rho``, so that
``q = R (dir + rho * centre) + rho * t`` is rho times the point in another camera. Kernels stay in this one file:
numba's cache does not notice edits elsewhere.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

HALF = 5
"""Patches are (2 HALF + 1) pixels wide."""
SIDE = 2 * HALF + 1


@njit(cache=True, nogil=True)
def _bilinear(image, u, v):
    x, y = int(u), int(v)
    fx, fy = u - x, v - y
    top = image[y, x] * (1.0 - fx) + image[y, x + 1] * fx
    bottom = image[y + 1, x] * (1.0 - fx) + image[y + 1, x + 1] * fx
    return top * (1.0 - fy) + bottom * fy


@njit(cache=True, nogil=True)
def sample_template(image, u, v, warp, out):
    """Read a warped (SIDE + 2) square around (u, v) into ``out``; False where it leaves the image."""
    H, W = image.shape
    for i in range(SIDE + 2):
        for j in range(SIDE + 2):
            dx, dy = j - HALF - 1.0, i - HALF - 1.0
            x = u + warp[0, 0] * dx + warp[0, 1] * dy
            y = v + warp[1, 0] * dx + warp[1, 1] * dy
            if not (x >= 0.0 and y >= 0.0 and x < W - 1.0 and y < H - 1.0):
                return False
            out[i, j] = _bilinear(image, x, y)
    return True


@njit(cache=True, nogil=True)
def align_patch(template, image, u, v, iterations, tensor):
    """Move (u, v) until ``image`` there looks like ``template`` (inverse compositional, gain and bias free).

    Baker & Matthews, "Lucas–Kanade 20 years on", 2004. Returns u, v, correlation (−1: failed), the residual's
    variance; ``tensor`` receives the sums (xx, xy, yy) of the template's gradient products.
    """
    H, W = image.shape
    gx = np.empty((SIDE, SIDE))
    gy = np.empty((SIDE, SIDE))
    a = b = c = mx = my = mean_t = 0.0
    n = SIDE * SIDE
    for i in range(SIDE):
        for j in range(SIDE):
            gx[i, j] = 0.5 * (template[i + 1, j + 2] - template[i + 1, j])
            gy[i, j] = 0.5 * (template[i + 2, j + 1] - template[i, j + 1])
            mx += gx[i, j] / n
            my += gy[i, j] / n
            mean_t += template[i + 1, j + 1] / n
    var_t = 0.0
    for i in range(SIDE):
        for j in range(SIDE):
            # the free bias takes the mean of everything away
            dx, dy = gx[i, j] - mx, gy[i, j] - my
            a += dx * dx
            b += dx * dy
            c += dy * dy
            var_t += (template[i + 1, j + 1] - mean_t) ** 2
    det = a * c - b * b
    tensor[0], tensor[1], tensor[2] = a, b, c
    if det < 1e-6 * (a + c) ** 2 or a + c < 0.5 * n or var_t < n * 1.0:
        return u, v, -1.0, 0.0
    values = np.empty((SIDE, SIDE))
    correlation, noise = -1.0, 0.0
    for _ in range(iterations):
        if not (u - HALF >= 0 and v - HALF >= 0 and u + HALF < W - 1 and v + HALF < H - 1):
            return u, v, -1.0, 0.0
        mean = 0.0
        for i in range(SIDE):
            for j in range(SIDE):
                values[i, j] = _bilinear(image, u + j - HALF, v + i - HALF)
                mean += values[i, j] / n
        var = cross = 0.0
        for i in range(SIDE):
            for j in range(SIDE):
                var += (values[i, j] - mean) ** 2
                cross += (values[i, j] - mean) * (template[i + 1, j + 1] - mean_t)
        if var < 1e-6:
            return u, v, -1.0, 0.0
        correlation = cross / math.sqrt(var * var_t)
        gain = math.sqrt(var_t / var)
        bx = by = noise = 0.0
        for i in range(SIDE):
            for j in range(SIDE):
                r = gain * (values[i, j] - mean) - (template[i + 1, j + 1] - mean_t)
                bx += gx[i, j] * r
                by += gy[i, j] * r
                noise += r * r / n
        du, dv = (c * bx - b * by) / det, (a * by - b * bx) / det
        u -= du
        v -= dv
        if du * du + dv * dv < 1e-4:
            break
    return u, v, correlation, noise


@njit(cache=True, nogil=True)
def _relate(P, Q, R, t):
    """Write the camera-P-from-camera-Q rotation and translation of two camera-from-world poses."""
    for i in range(3):
        for j in range(3):
            R[i, j] = P[i, 0] * Q[j, 0] + P[i, 1] * Q[j, 1] + P[i, 2] * Q[j, 2]
    for i in range(3):
        t[i] = P[i, 3] - R[i, 0] * Q[0, 3] - R[i, 1] * Q[1, 3] - R[i, 2] * Q[2, 3]


@njit(cache=True, nogil=True)
def _carry(R, t, ray, rho, q):
    """Write q = R ray + rho t."""
    for i in range(3):
        q[i] = R[i, 0] * ray[0] + R[i, 1] * ray[1] + R[i, 2] * ray[2] + rho * t[i]


@njit(cache=True, nogil=True)
def _warp_of(cam, ray, rho, R, t, out):
    """Write the 2×2 that takes target pixel offsets to host offsets, for a patch facing its host. False: unusable."""
    q = np.empty(3)
    _carry(R, t, ray, rho, q)
    if q[2] < 1e-6:
        return False
    x, y, z = q[0] / q[2], q[1] / q[2], q[2]
    a = cam[0] * (R[0, 0] - x * R[2, 0]) / (z * cam[0])
    b = cam[0] * (R[0, 1] - x * R[2, 1]) / (z * cam[1])
    c = cam[1] * (R[1, 0] - y * R[2, 0]) / (z * cam[0])
    d = cam[1] * (R[1, 1] - y * R[2, 1]) / (z * cam[1])
    det = a * d - b * c
    if det < 0.1 or det > 10.0:  # more than about 3 times nearer or farther: looks different
        return False
    out[0, 0], out[0, 1], out[1, 0], out[1, 1] = d / det, -b / det, -c / det, a / det
    return True


@njit(cache=True, nogil=True)
def align_patches(
    hosts, target, todo, cam, uv0, rays, rho, host, host_from_world, pose, uv, quality
):
    """Refine ``uv`` (N, 2) of the patches in ``todo`` in the target image, coarse to fine, and grade them.

    ``hosts`` and ``target`` are pyramids (tuples of levels). ``quality`` (N, 5) receives correlation (−1:
    failed, ``uv`` is kept), the residual's variance and the template's structure tensor at the finest level.
    """
    template, tensor = np.empty((SIDE + 2, SIDE + 2)), np.empty(3)
    warp, R, t = np.empty((2, 2)), np.empty((3, 3)), np.empty(3)
    for n in todo:
        quality[n, 0] = -1.0
        h = host[n]
        _relate(pose, host_from_world[h], R, t)
        if not _warp_of(cam, rays[n], rho[n], R, t, warp):
            continue
        # a target that sees the patch smaller is compared with the host at a coarser level
        shrink = math.sqrt(abs(warp[0, 0] * warp[1, 1] - warp[0, 1] * warp[1, 0]))
        u, v = uv[n, 0], uv[n, 1]
        good = True
        for level in range(1, -1, -1):
            s = 1.0 / (1 << level)
            extra = 1 if shrink > 1.6 else 0
            sh = 1.0 / (1 << (level + extra))
            hu, hv = (uv0[n, 0] + 0.5) * sh - 0.5, (uv0[n, 1] + 0.5) * sh - 0.5
            ok = sample_template(hosts[level + extra][h], hu, hv, warp / (1 << extra), template)
            if not ok:
                good = (
                    level == 1
                )  # the coarse level may leave the image where the fine one does not
                continue
            x, y = (u + 0.5) * s - 0.5, (v + 0.5) * s - 0.5
            x, y, corr, noise = align_patch(template, target[level], x, y, 10, tensor)
            if corr < 0.6:
                good = level == 1
                continue
            u, v = (x + 0.5) / s - 0.5, (y + 0.5) / s - 0.5
            quality[n, 1] = noise
            quality[n, 2:] = tensor
            if level == 0:
                quality[n, 0] = corr
        if good and quality[n, 0] > 0:
            uv[n, 0], uv[n, 1] = u, v
        else:
            quality[n, 0] = -1.0


@njit(cache=True, nogil=True)
def so3_exp(phi, out):
    """Write Rodrigues' rotation of ``phi`` into ``out``."""
    x, y, z = phi[0], phi[1], phi[2]
    sq = x * x + y * y + z * z
    if sq < 1e-12:
        a, b = 1.0 - sq / 6.0, 0.5 - sq / 24.0
    else:
        angle = math.sqrt(sq)
        a, b = math.sin(angle) / angle, (1.0 - math.cos(angle)) / sq
    out[0, 0], out[0, 1], out[0, 2] = 1 - b * (y * y + z * z), b * x * y - a * z, b * x * z + a * y
    out[1, 0], out[1, 1], out[1, 2] = b * x * y + a * z, 1 - b * (x * x + z * z), b * y * z - a * x
    out[2, 0], out[2, 1], out[2, 2] = b * x * z - a * y, b * y * z + a * x, 1 - b * (x * x + y * y)


@njit(cache=True, nogil=True)
def move_pose(pose, xi):
    """Apply a left twist: rotation by exp, translation to first order, which is a valid retraction."""
    dR = np.empty((3, 3))
    so3_exp(xi[3:6], dR)
    for j in range(4):
        a, b, c = pose[0, j], pose[1, j], pose[2, j]
        for i in range(3):
            pose[i, j] = dR[i, 0] * a + dR[i, 1] * b + dR[i, 2] * c
    for i in range(3):
        pose[i, 3] += xi[i]


@njit(cache=True, nogil=True)
def _robust(sq, scale_sq):
    """Return the Geman–McClure weight of a squared error in σ²; scale_sq anneals from large to small (GNC)."""
    w = scale_sq / (scale_sq + sq)
    return w * w


@njit(cache=True, nogil=True)
def _square(info, u, v):
    """Return the squared error in σ² of a residual; ``info`` is (xx, xy, yy) of its inverse covariance."""
    return u * u * info[0] + 2.0 * u * v * info[1] + v * v * info[2]


@njit(cache=True, nogil=True)
def _weigh(info, u, v):
    return info[0] * u + info[1] * v, info[1] * u + info[2] * v


@njit(cache=True, nogil=True)
def pose_normal_equations(cam, dirs, centres, rho, rho_var, uv, info, pose, scale_sq, A, g, out):
    """Build the 6×6 system of one pose; ``out`` (N) receives squared errors in σ². Returns the robust cost.

    The 2×2 covariance of each residual holds the measurement and the patch's own depth, so that a patch of unknown
    depth constrains only across its epipolar line.
    """
    A[:] = 0.0
    g[:] = 0.0
    J = np.empty((2, 6))
    cost = 0.0
    q, d = np.empty(3), np.empty(3)
    for n in range(len(rho)):
        for i in range(3):
            d[i] = (
                pose[i, 0] * centres[n, 0]
                + pose[i, 1] * centres[n, 1]
                + pose[i, 2] * centres[n, 2]
                + pose[i, 3]
            )
            q[i] = (
                pose[i, 0] * dirs[n, 0]
                + pose[i, 1] * dirs[n, 1]
                + pose[i, 2] * dirs[n, 2]
                + rho[n] * d[i]
            )
        if q[2] < 1e-6:
            out[n] = 1e6
            cost += scale_sq
            continue
        iz = 1.0 / q[2]
        x, y = q[0] * iz, q[1] * iz
        ru, rv = cam[0] * x + cam[2] - uv[n, 0], cam[1] * y + cam[3] - uv[n, 1]
        au, av = cam[0] * iz, cam[1] * iz
        eu, ev = au * (d[0] - x * d[2]), av * (d[1] - y * d[2])
        # Woodbury: (C + v e eT)^-1 = W - W e eT W / (1/v + eT W e), with W = C^-1
        w00, w01, w11 = info[n, 0], info[n, 1], info[n, 2]
        pu, pv = w00 * eu + w01 * ev, w01 * eu + w11 * ev
        share = rho_var[n] / (1.0 + rho_var[n] * (eu * pu + ev * pv))
        w00 -= share * pu * pu
        w01 -= share * pu * pv
        w11 -= share * pv * pv
        sq = ru * ru * w00 + 2 * ru * rv * w01 + rv * rv * w11
        out[n] = sq
        cost += scale_sq * sq / (scale_sq + sq)
        w = _robust(sq, scale_sq)
        r = rho[n]
        J[0, 0], J[0, 1], J[0, 2] = au * r, 0.0, -au * x * r
        J[1, 0], J[1, 1], J[1, 2] = 0.0, av * r, -av * y * r
        J[0, 3], J[0, 4], J[0, 5] = -au * x * q[1], au * (q[2] + x * q[0]), -au * q[1]
        J[1, 3], J[1, 4], J[1, 5] = -av * (q[2] + y * q[1]), av * y * q[0], av * q[0]
        for i in range(6):
            wu = w * (J[0, i] * w00 + J[1, i] * w01)
            wv = w * (J[0, i] * w01 + J[1, i] * w11)
            g[i] += wu * ru + wv * rv
            for j in range(i, 6):
                A[i, j] += wu * J[0, j] + wv * J[1, j]
    for i in range(6):
        for j in range(i):
            A[i, j] = A[j, i]
    return cost


@njit(cache=True, nogil=True)
def _quadratic(A, x):
    total = 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            total += x[i] * A[i, j] * x[j]
    return total


@njit(cache=True, nogil=True)
def refine_pose(cam, dirs, centres, rho, rho_var, uv, info, pose, prior, schedule, errors):
    """Move ``pose`` (3, 4) to fit the patches; ``schedule`` lists the robust scale (σ²) of each iteration.

    ``prior`` (6, 6) is the information of staying at the initial pose. Returns the 6×6 information at the end.
    """
    A = np.zeros((6, 6))
    g = np.zeros(6)
    moved = np.zeros(6)
    step = np.zeros(6)
    damping = 1e-6
    before = pose.copy()
    last = -1.0
    for k in range(len(schedule)):
        cost = pose_normal_equations(
            cam, dirs, centres, rho, rho_var, uv, info, pose, schedule[k], A, g, errors
        )
        cost += _quadratic(prior, moved)
        same = k > 0 and schedule[k] == schedule[k - 1]
        if same and cost > last * (1 + 1e-9):
            pose[:] = before
            moved -= step
            damping = damping * 30 + 1e-4
            pose_normal_equations(
                cam, dirs, centres, rho, rho_var, uv, info, pose, schedule[k], A, g, errors
            )
        else:
            last = cost
            damping = damping * 0.3
        M = A + prior
        for i in range(6):
            M[i, i] += damping * A[i, i] + 1e-9
        step = -np.linalg.solve(M, g + prior @ moved)
        before[:] = pose
        move_pose(pose, step)
        moved += step
        if same and np.max(np.abs(step)) < 1e-8:
            break
    pose_normal_equations(
        cam, dirs, centres, rho, rho_var, uv, info, pose, schedule[len(schedule) - 1], A, g, errors
    )
    return A


@njit(cache=True, nogil=True)
def refine_depths(
    cam, rays, host, poses, obs_patch, obs_frame, obs_uv, obs_info, rho, rho_info, prior, prior_info
):
    """Fit the inverse depth of each patch to its observations with all poses held; Gauss–Newton, robust.

    Observations are sorted by patch. ``rho_info`` receives the information (1/variance) of each.
    """
    R, t, q = np.empty((3, 3)), np.empty(3), np.empty(3)
    start = 0
    total = len(obs_patch)
    while start < total:
        n = obs_patch[start]
        stop = start
        while stop < total and obs_patch[stop] == n:
            stop += 1
        info = 0.0
        for iteration in range(5):
            info, grad = prior_info[n], prior_info[n] * (rho[n] - prior[n])
            scale_sq = 100.0 if iteration < 2 else 16.0
            for k in range(start, stop):
                _relate(poses[obs_frame[k]], poses[host[n]], R, t)
                _carry(R, t, rays[n], rho[n], q)
                if q[2] < 1e-6:
                    continue
                x, y = q[0] / q[2], q[1] / q[2]
                ru = cam[0] * x + cam[2] - obs_uv[k, 0]
                rv = cam[1] * y + cam[3] - obs_uv[k, 1]
                ju = cam[0] * (t[0] - x * t[2]) / q[2]
                jv = cam[1] * (t[1] - y * t[2]) / q[2]
                wu, wv = _weigh(obs_info[k], ju, jv)
                w = _robust(_square(obs_info[k], ru, rv), scale_sq)
                info += w * (wu * ju + wv * jv)
                grad += w * (wu * ru + wv * rv)
            if info <= 0:
                break
            step = -grad / info
            limit = 0.5 * abs(rho[n]) + 1e-3
            rho[n] += min(max(step, -limit), limit)
            if rho[n] < 1e-4:
                rho[n] = 1e-4
        rho_info[n] = info
        start = stop


@njit(cache=True, nogil=True)
def bundle_jacobians(cam, ray, rho, R, t, uv, Ji, Jj, Jr, Jf, res):
    """Write residual and its derivatives by host twist, target twist, inverse depth and log focal. False: behind."""
    q0 = R[0, 0] * ray[0] + R[0, 1] * ray[1] + R[0, 2] * ray[2] + rho * t[0]
    q1 = R[1, 0] * ray[0] + R[1, 1] * ray[1] + R[1, 2] * ray[2] + rho * t[1]
    q2 = R[2, 0] * ray[0] + R[2, 1] * ray[1] + R[2, 2] * ray[2] + rho * t[2]
    if q2 < 1e-4:
        return False
    iz = 1.0 / q2
    x, y = q0 * iz, q1 * iz
    res[0], res[1] = cam[0] * x + cam[2] - uv[0], cam[1] * y + cam[3] - uv[1]
    # D: 2×3 derivative of the pixel by q
    au, av = cam[0] * iz, cam[1] * iz
    for i in range(2):
        a, m = (au, x) if i == 0 else (av, y)
        d0, d1, d2 = (a, 0.0, -a * m) if i == 0 else (0.0, a, -a * m)
        Jj[i, 0], Jj[i, 1], Jj[i, 2] = d0 * rho, d1 * rho, d2 * rho
        Jj[i, 3] = d2 * q1 - d1 * q2
        Jj[i, 4] = d0 * q2 - d2 * q0
        Jj[i, 5] = d1 * q0 - d0 * q1
        e0 = d0 * R[0, 0] + d1 * R[1, 0] + d2 * R[2, 0]
        e1 = d0 * R[0, 1] + d1 * R[1, 1] + d2 * R[2, 1]
        e2 = d0 * R[0, 2] + d1 * R[1, 2] + d2 * R[2, 2]
        Ji[i, 0], Ji[i, 1], Ji[i, 2] = -e0 * rho, -e1 * rho, -e2 * rho
        Ji[i, 3] = -(e2 * ray[1] - e1 * ray[2])
        Ji[i, 4] = -(e0 * ray[2] - e2 * ray[0])
        Ji[i, 5] = -(e1 * ray[0] - e0 * ray[1])
        Jr[i] = d0 * t[0] + d1 * t[1] + d2 * t[2]
        Jf[i] = (cam[i] * m) - e0 * ray[0] - e1 * ray[1]
    return True


@njit(cache=True, nogil=True)
def bundle_cost(
    cam, rays, host, poses, rho, obs_patch, obs_frame, obs_uv, obs_info, scale_sq, prior, prior_info
):
    """Return the robust cost of the whole window."""
    R, t, q = np.empty((3, 3)), np.empty(3), np.empty(3)
    cost = 0.0
    for n in range(len(rho)):
        cost += prior_info[n] * (rho[n] - prior[n]) ** 2
    for k in range(len(obs_patch)):
        n = obs_patch[k]
        _relate(poses[obs_frame[k]], poses[host[n]], R, t)
        _carry(R, t, rays[n], rho[n], q)
        if q[2] < 1e-4:
            cost += scale_sq
            continue
        ru = cam[0] * q[0] / q[2] + cam[2] - obs_uv[k, 0]
        rv = cam[1] * q[1] / q[2] + cam[3] - obs_uv[k, 1]
        sq = _square(obs_info[k], ru, rv)
        cost += scale_sq * sq / (scale_sq + sq)
    return cost


@njit(cache=True, nogil=True)
def bundle_system(
    cam,
    rays,
    host,
    poses,
    column,
    rho,
    obs_patch,
    obs_frame,
    obs_uv,
    obs_info,
    scale_sq,
    prior,
    prior_info,
    H,
    b,
    E,
    C,
    gr,
):
    """Build the normal equations: H (D, D), b (D) of poses and focal; E (N, D), C (N), gr (N) of inverse depths.

    ``column`` (F) is the first column of a pose in H, or −1 where the pose is held; the last column is log focal.
    """
    H[:] = 0.0
    b[:] = 0.0
    E[:] = 0.0
    D = len(b)
    for n in range(len(rho)):
        C[n] = prior_info[n]
        gr[n] = prior_info[n] * (rho[n] - prior[n])
    Ji, Jj = np.empty((2, 6)), np.empty((2, 6))
    Jr, Jf, res = np.empty(2), np.empty(2), np.empty(2)
    J = np.empty((2, 13))
    where = np.empty(13, np.int64)
    R, t = np.empty((3, 3)), np.empty(3)
    for k in range(len(obs_patch)):
        n, f = obs_patch[k], obs_frame[k]
        h = host[n]
        _relate(poses[f], poses[h], R, t)
        if not bundle_jacobians(cam, rays[n], rho[n], R, t, obs_uv[k], Ji, Jj, Jr, Jf, res):
            continue
        w = _robust(_square(obs_info[k], res[0], res[1]), scale_sq)
        size = 0
        for owner in range(2):
            first = column[h] if owner == 0 else column[f]
            if first < 0:
                continue
            for i in range(6):
                where[size] = first + i
                J[0, size] = Ji[0, i] if owner == 0 else Jj[0, i]
                J[1, size] = Ji[1, i] if owner == 0 else Jj[1, i]
                size += 1
        where[size], J[0, size], J[1, size] = D - 1, Jf[0], Jf[1]
        size += 1
        wu, wv = _weigh(obs_info[k], Jr[0], Jr[1])
        C[n] += w * (wu * Jr[0] + wv * Jr[1])
        gr[n] += w * (wu * res[0] + wv * res[1])
        for i in range(size):
            wu, wv = _weigh(obs_info[k], w * J[0, i], w * J[1, i])
            b[where[i]] += wu * res[0] + wv * res[1]
            E[n, where[i]] += wu * Jr[0] + wv * Jr[1]
            for j in range(size):
                H[where[i], where[j]] += wu * J[0, j] + wv * J[1, j]


@njit(cache=True, nogil=True)
def schur(H, b, E, C, gr, damping, S, s):
    """Eliminate the inverse depths: S = H − Eᵀ C⁻¹ E, s = b − Eᵀ C⁻¹ gr, with Levenberg damping on both blocks."""
    D = len(b)
    S[:] = H
    s[:] = b
    for i in range(D):
        S[i, i] += damping * H[i, i] + 1e-9
    used = np.empty(D, np.int64)
    for n in range(len(C)):
        if C[n] <= 1e-12:
            continue
        inv = 1.0 / (C[n] * (1.0 + damping))
        count = 0
        for i in range(D):
            if E[n, i] != 0.0:
                used[count] = i
                count += 1
        for i in range(count):
            ei = E[n, used[i]] * inv
            s[used[i]] -= ei * gr[n]
            for j in range(count):
                S[used[i], used[j]] -= ei * E[n, used[j]]


@njit(cache=True, nogil=True)
def _read_map(image, u, v):
    """Read a map of inverse depth between pixels: bilinear on a surface, nearest at an edge."""
    x, y = int(u), int(v)
    a, b, c, d = image[y, x], image[y, x + 1], image[y + 1, x], image[y + 1, x + 1]
    low, high = min(min(a, b), min(c, d)), max(max(a, b), max(c, d))
    fx, fy = u - x, v - y
    if high > 1.1 * low:
        return image[y + (1 if fy > 0.5 else 0), x + (1 if fx > 0.5 else 0)]
    return (a * (1.0 - fx) + b * fx) * (1.0 - fy) + (c * (1.0 - fx) + d * fx) * fy


@njit(cache=True, nogil=True)
def dense_step(
    cam,
    R,
    t,
    flow,
    back,
    sigma,
    rho_before,
    info_before,
    guess,
    settings,
    rho,
    info,
    evidence,
    source,
):
    """Carry the depth filter one frame on and test each pixel for motion of its own.

    ``back`` (H, W, 2) leads from this frame to the one before, ``flow`` and ``sigma`` from there to here; ``R``, ``t``
    take the camera before to this one. ``guess`` (H, W) is the inverse depth where nothing is known. ``settings`` is
    (floor px², forgetting, guess σ, mover σ px). Writes inverse depth and its information, ``evidence``: log likelihood
    ratio of moving to static, and ``source`` (H, W, 2): where each pixel was before, NaN where it was not seen.
    """
    H, W = rho.shape
    floor, forget, guess_sigma, mover_sq = settings[0], settings[1], settings[2], settings[3] ** 2
    for y in range(H):
        for x in range(W):
            u, v = x + back[y, x, 0], y + back[y, x, 1]
            fresh = 1.0 / (guess_sigma * guess[y, x]) ** 2
            rho[y, x], info[y, x], evidence[y, x] = guess[y, x], fresh, 0.0
            source[y, x, 0] = source[y, x, 1] = np.nan
            if not (u >= 0.0 and v >= 0.0 and u < W - 1.0 and v < H - 1.0):
                continue
            nx, ny = int(u + 0.5), int(v + 0.5)
            gap_u = back[y, x, 0] + _bilinear(flow[:, :, 0], u, v)
            gap_v = back[y, x, 1] + _bilinear(flow[:, :, 1], u, v)
            gap = gap_u * gap_u + gap_v * gap_v
            spread = sigma[ny, nx]
            if not (gap < 1.0 + 0.01 * (back[y, x, 0] ** 2 + back[y, x, 1] ** 2)) or not (
                spread < 4.0
            ):
                continue
            source[y, x, 0], source[y, x, 1] = u, v
            r0 = _read_map(rho_before, u, v)
            i0 = info_before[ny, nx] * forget
            a, b = (u - cam[2]) / cam[0], (v - cam[3]) / cam[1]
            q0 = R[0, 0] * a + R[0, 1] * b + R[0, 2] + r0 * t[0]
            q1 = R[1, 0] * a + R[1, 1] * b + R[1, 2] + r0 * t[1]
            q2 = R[2, 0] * a + R[2, 1] * b + R[2, 2] + r0 * t[2]
            if q2 < 1e-6:
                continue
            m, n = q0 / q2, q1 / q2
            ru, rv = cam[0] * m + cam[2] - x, cam[1] * n + cam[3] - y
            eu, ev = cam[0] * (t[0] - m * t[2]) / q2, cam[1] * (t[1] - n * t[2]) / q2
            var = 1.0 / i0
            noise = spread * spread + floor
            # residual covariance: noise * I + var * e eT; a mover adds mover_sq * I
            ee, re = eu * eu + ev * ev, ru * eu + rv * ev
            rr = ru * ru + rv * rv
            along = noise + var * ee
            square = (
                (rr - re * re / ee) / noise + re * re / (ee * along) if ee > 1e-12 else rr / noise
            )
            moving, moving_along = noise + mover_sq, along + mover_sq
            if ee > 1e-12:
                other = (rr - re * re / ee) / moving + re * re / (ee * moving_along)
            else:
                other = rr / moving
            ratio = 0.5 * (square - other - math.log(moving * moving_along / (noise * along)))
            evidence[y, x] = min(max(ratio, -2.0), 4.0)
            # Kalman update along the epipolar line, weaker where the pixel seems to move
            keep = 9.0 / (9.0 + square)
            gain = var / along * keep
            r1 = max(r0 - gain * re, 0.1 * r0)
            i1 = i0 + keep * ee / noise
            z = (R[2, 0] * a + R[2, 1] * b + R[2, 2]) + r1 * t[2]
            if z < 1e-6:
                continue
            rho[y, x] = r1 / z
            info[y, x] = i1 * z * z
