"""The dense depth and motion of the frames in hand, as the chain carries them along."""

from __future__ import annotations

from stream4d.pose import dense, track
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record


def densify(progress: Progress, record: Record, previous: Record | None) -> None:
    """Carry depth and motion from the frame before to this one."""
    local_map = progress.map
    guess = dense.spread_patches(local_map, record.pose)
    if previous is None or previous.segment != record.segment or not previous.rho.size:
        state = dense.first(guess)
    else:
        before = dense.DenseState(previous.rho, previous.rho_info, previous.logit)
        state = dense.step(
            before, dense.Maps(record.flow_here, record.back_here, record.sigma_here, record.motion),
            local_map.cam, track.relative_pose(record.pose, previous.pose), guess, has_scale=progress.started,
        )  # fmt: skip
    record.rho, record.rho_info, record.logit = state.rho, state.info, state.logit
