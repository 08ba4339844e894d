"""The line of figures that other tools read, one per sequence."""

from __future__ import annotations

from typing import Any

ROW_FIELDS = (
    "name", "status", "reason", "frames", "frames_with_pose", "path_m", "ate_m", "ate_percent",
    "rpe_trans_m", "rpe_rot_deg", "focal_error_percent", "depth_abs_rel", "depth_delta1", "mask_j",
    "mask_f", "static_share", "flow_epe", "flow_fl_percent", "flow_dis_epe", "flow_dis_fl_percent",
    "pose_in_1sigma", "fps", "latency_s", "peak_rss_mb",
)  # fmt: skip
"""Keys of a row, in order. A field without ground truth is None."""


def empty_row(name: str, status: str, reason: str = "", frames: int = 0) -> dict[str, Any]:
    """Return a row without measurements, for a sequence that failed."""
    row: dict[str, Any] = dict.fromkeys(ROW_FIELDS)
    row.update(name=name, status=status, reason=reason, frames=frames, frames_with_pose=0)
    return row
