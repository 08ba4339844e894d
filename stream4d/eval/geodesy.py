"""Errors on the Earth, where ground truth is GPS: latitude, longitude, height (WGS 84)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stream4d.errors import EvaluationError
from stream4d.packets import Array

SEMI_MAJOR_M = 6378137.0
FLATTENING = 1 / 298.257223563
_E2 = FLATTENING * (2 - FLATTENING)


def to_enu(geodetic: Array, origin: Array) -> Array:
    """Turn (N, 3) latitude°, longitude°, height m into metres east, north, up of ``origin`` (3,)."""
    offset = _to_ecef(geodetic) - _to_ecef(origin[None])
    enu: Array = offset @ _enu_axes(origin).T
    return enu


def from_enu(enu: Array, origin: Array) -> Array:
    """Invert ``to_enu``."""
    return _from_ecef(enu @ _enu_axes(origin) + _to_ecef(origin[None]))


def geodesic_m(first: Array, second: Array) -> Array:
    """Return (N,) metres along the ellipsoid between (N, 3) geodetic positions; heights are ignored.

    Uses the local radii of curvature at the middle latitude: below 1 mm per kilometre for errors up to 10 km.
    """
    middle = np.radians((first[:, 0] + second[:, 0]) / 2)
    north = np.radians(second[:, 0] - first[:, 0])
    east = np.radians((second[:, 1] - first[:, 1] + 180) % 360 - 180)
    w = np.sqrt(1 - _E2 * np.sin(middle) ** 2)
    meridian, prime_vertical = SEMI_MAJOR_M * (1 - _E2) / w**3, SEMI_MAJOR_M / w
    distance: Array = np.hypot(meridian * north, prime_vertical * np.cos(middle) * east)
    return distance


def read_gps(path: Path) -> tuple[Array, Array]:
    """Read ``timestamp latitude longitude height`` lines: (N,) seconds and (N, 3) geodetic.

    Raises:
        EvaluationError: missing or malformed file.
    """
    try:
        rows = np.loadtxt(path, comments="#", ndmin=2)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot read GPS ground truth {path}: {error}") from None
    if rows.shape[1] != 4 or (np.abs(rows[:, 1]) > 90).any():
        raise EvaluationError(f"{path} must hold lines of timestamp, latitude, longitude, height")
    return rows[:, 0], rows[:, 1:]


def _to_ecef(geodetic: Array) -> Array:
    latitude, longitude = np.radians(geodetic[:, 0]), np.radians(geodetic[:, 1])
    height = geodetic[:, 2]
    N = SEMI_MAJOR_M / np.sqrt(1 - _E2 * np.sin(latitude) ** 2)
    x = (N + height) * np.cos(latitude) * np.cos(longitude)
    y = (N + height) * np.cos(latitude) * np.sin(longitude)
    return np.stack([x, y, (N * (1 - _E2) + height) * np.sin(latitude)], axis=1)


def _from_ecef(xyz: Array) -> Array:
    """Invert by fixed-point iteration on latitude; converges to below 1e-12 rad in a few steps."""
    p = np.hypot(xyz[:, 0], xyz[:, 1])
    latitude = np.arctan2(xyz[:, 2], p * (1 - _E2))
    for _ in range(8):
        N = SEMI_MAJOR_M / np.sqrt(1 - _E2 * np.sin(latitude) ** 2)
        latitude = np.arctan2(xyz[:, 2] + _E2 * N * np.sin(latitude), p)
    N = SEMI_MAJOR_M / np.sqrt(1 - _E2 * np.sin(latitude) ** 2)
    # This form of the height stays exact at the poles.
    height = p * np.cos(latitude) + xyz[:, 2] * np.sin(latitude) - SEMI_MAJOR_M**2 / N
    longitude = np.arctan2(xyz[:, 1], xyz[:, 0])
    return np.stack([np.degrees(latitude), np.degrees(longitude), height], axis=1)


def _enu_axes(origin: Array) -> Array:
    latitude, longitude = np.radians(origin[0]), np.radians(origin[1])
    sin_a, cos_a, sin_o, cos_o = (
        np.sin(latitude),
        np.cos(latitude),
        np.sin(longitude),
        np.cos(longitude),
    )
    return np.array(
        [
            [-sin_o, cos_o, 0],
            [-sin_a * cos_o, -sin_a * sin_o, cos_a],
            [cos_a * cos_o, cos_a * sin_o, sin_a],
        ]
    )
