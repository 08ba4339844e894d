"""Published figures of other systems, with where they were published. Nothing here was measured by us.

A figure belongs on this list only with a source that a reader can open. ``same_data`` says whether it was measured on
exactly the frames that our figure is measured on; otherwise it only gives the scale of what the field reaches.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One published figure."""

    system: str
    """Name as its authors give it."""
    figure: str
    """Key of a row that it compares to."""
    value: float
    """The figure, in the row's unit."""
    data: str
    """What it was measured on."""
    calibrated: bool
    """The system was given the camera."""
    clips: tuple[str, ...]
    """Our clips whose mean it stands beside."""
    same_data: bool
    """Those clips are exactly the data that it was measured on."""
    machine: str
    """What it ran on, as far as the source says."""
    source: str
    """Where it was published."""


_MAST3R_SLAM = "Murai et al., MASt3R-SLAM, CVPR 2025, arXiv:2412.12392, Table 1"
_VGGT_SLAM = "Maggio et al., VGGT-SLAM, arXiv:2505.12549, Table 1"
_VGGT4D = "VGGT4D, 2025, Table 1 (DAVIS-2016)"
_CUT3R = "Wang et al., CUT3R, CVPR 2025, arXiv:2501.12387, Table 2"
_DAVIS_CLIPS = (
    "davis_breakdance", "davis_camel", "davis_car-roundabout", "davis_dance-twirl", "davis_dog",
    "davis_drift-straight", "davis_parkour", "davis_soapbox",
)  # fmt: skip


def _fr1_xyz(system: str, value: float, *, calibrated: bool, machine: str, source: str) -> Peer:
    return Peer(
        system=system, figure="ate_m", value=value, data="TUM RGB-D fr1/xyz", source=source,
        calibrated=calibrated, clips=("tum_fr1_xyz",), same_data=True, machine=machine,
    )  # fmt: skip


def _davis(system: str, j: float, f: float) -> list[Peer]:
    return [
        Peer(
            system=system, figure=figure, value=value / 100, data="DAVIS 2016, all 20 clips",
            calibrated=False, clips=_DAVIS_CLIPS, same_data=False, machine="one RTX A6000",
            source=_VGGT4D,
        )
        for figure, value in (("mask_j", j), ("mask_f", f))
    ]  # fmt: skip


def _speed(system: str, value: float) -> Peer:
    return Peer(
        system=system, figure="fps", value=value, data="KITTI, 512×144", calibrated=False,
        clips=("kitti_odom_clip1",), same_data=False, machine="one A100", source=_CUT3R,
    )  # fmt: skip


PEERS: tuple[Peer, ...] = (
    _fr1_xyz("DROID-SLAM", 0.012, calibrated=True, machine="GPU", source=_MAST3R_SLAM),
    _fr1_xyz(
        "DPVO", 0.012, calibrated=True, machine="one RTX 3090",
        source="Teed et al., Deep Patch Visual Odometry, NeurIPS 2023, arXiv:2208.04726",
    ),
    _fr1_xyz("GO-SLAM", 0.010, calibrated=True, machine="GPU", source=_MAST3R_SLAM),
    _fr1_xyz("MASt3R-SLAM", 0.009, calibrated=True, machine="one RTX 4090", source=_MAST3R_SLAM),
    _fr1_xyz("MASt3R-SLAM", 0.020, calibrated=False, machine="one RTX 4090", source=_MAST3R_SLAM),
    _fr1_xyz("VGGT-SLAM, SL(4)", 0.014, calibrated=False, machine="GPU", source=_VGGT_SLAM),
    *_davis("MonST3R", 40.42, 49.54),
    *_davis("DAS3R", 41.13, 44.50),
    *_davis("Easi3R (MonST3R)", 54.93, 45.29),
    *_davis("VGGT4D", 62.12, 56.04),
    _speed("MonST3R with global alignment", 0.35),
    _speed("Spann3R (224×224)", 13.55),
    _speed("CUT3R", 16.58),
)  # fmt: skip
"""Every published figure that the results page shows."""

BENCHMARKS = ("sintel", "tum-dynamics", "scannet", "kitti-odometry")
"""Protocols of ``BENCHMARK_ATE``, in order."""
_LASER = "LASER (2025), Tables 2 and 3"
BENCHMARK_ATE: tuple[tuple[str, tuple[float | None, ...], str], ...] = (
    (
        "MonST3R with global alignment",
        (0.111, 0.098, 0.077, None),
        _CUT3R.replace("Table 2", "Table 3"),
    ),
    ("CUT3R", (0.213, 0.046, 0.099, None), _CUT3R.replace("Table 2", "Table 3")),
    ("TTT3R", (0.201, 0.028, 0.064, None), _LASER),
    ("LASER (π³)", (0.061, 0.016, 0.031, 24.17), _LASER),
    ("VGGT-Long", (None, None, None, 27.64), _LASER),
)
"""System, mean ATE (m, Sim(3)) per benchmark, source: what to compare with once the data are at hand."""
