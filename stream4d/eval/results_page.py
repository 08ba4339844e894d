"""Writes the results page (Markdown) from evaluation JSON: ours, others', and where ours is worse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from stream4d.eval.coverage import LEVELS, pooled
from stream4d.eval.peers import BENCHMARK_ATE, BENCHMARKS, PEERS, Peer
from stream4d.eval.report import COLUMNS, cells, failed, markdown_table
from stream4d.eval.runner import mean_row

POSE = (
    "path_m",
    "ate_m",
    "ate_percent",
    "rpe_trans_m",
    "rpe_rot_deg",
    "focal_error_percent",
    "pose_in_1sigma",
)
SCENE = ("depth_abs_rel", "depth_delta1", "mask_j", "mask_f", "static_share")
FLOW = ("flow_epe", "flow_dis_epe", "flow_fl_percent", "flow_dis_fl_percent")
SPEED = ("fps", "latency_s", "peak_rss_mb")
MORE = (
    ("ate_se3_m", "ATE SE(3) m"),
    ("rotation_deg", "rotation °"),
    ("depth.scale.rmse_m", "depth RMSE m"),
    ("depth.scale.silog", "SILog"),
    ("depth.scale_shift.abs_rel", "AbsRel, scale+shift"),
    ("depth.per_frame.abs_rel", "AbsRel per frame"),
    ("depth_density", "depth known"),
    ("confidence.ece", "confidence error"),
    ("points.chamfer_m", "Chamfer m"),
    ("points.f_score", "F-score"),
    ("points.normal_consistency", "normals"),
    ("mask.j_recall", "J recall"),
    ("tracks.average_jaccard", "tracks AJ"),
)
"""Path into a sequence's details, heading."""
SMALLER_IS_BETTER = {"ate_m"}
HEADINGS = {key: title for key, title, _ in COLUMNS}

NOTES = """\
## How to read this

- **Uncalibrated** runs get the video alone; **calibrated** runs are also given the true camera (and lens: frames are
  then undistorted, and ground truth goes through the same map by nearest neighbour). They are never mixed.
- **ATE**: RMSE of camera positions after one Sim(3) alignment of the whole path; **%** of the path's length. **RPE**:
  RMSE between consecutive frames. Both through evo. Poses are the final ones; frames without ground truth are left out.
- **frames** `a/b`: b frames came out, a of them were tracked (the pose was measured, not predicted) in the longest
  segment. A failed sequence has no figures and is counted.
- **in 1σ**: share of position and rotation components whose error is within the stated standard deviation (0.68 is
  honest; more is too modest, less is boastful). Covariances are stated in the world that the first frame defines, so
  errors are measured there: truth is moved onto the first thirtieth of the poses and scaled as for ATE, not fitted to
  the whole path, which would shrink the errors at its end and put some at its beginning (`eval/coverage.py`).
- **AbsRel, δ<1.25**: depth after one median scale per sequence, all pixels with ground truth, at its resolution.
- **J, F**: intersection over union and boundary F of moving pixels (DAVIS). The `davis_*` ground truth marks only the
  salient object, so that other true movers count as errors. **static**: share of pixels not masked as moving.
- **More**: ATE after SE(3) alignment charges the scale, which one camera cannot know. Depth errors after a median
  scale, or least-squares scale and shift, per sequence, or a median scale per frame; **depth known** is the share
  of true pixels that have a prediction, the others do not count. Confidence error: mean gap between
  stated confidence and the share of pixels within 10 %. Chamfer, F-score (1 % of the scene's diagonal) and normal
  consistency of points after one robust Sim(3). Tracks: TAP-Vid's average Jaccard of points chained through the flow,
  against true depth and poses.
- **EPE, Fl**: flow error in pixels of the ground truth, and share wrong by > 3 px and > 5 %. **(DIS)** is OpenCV's DIS
  (medium) on the same processed images.
- **fps** is the whole pipeline without viewer and without the time spent on scoring. **first s**: from opening the
  video, loading the model included, to the first posed frame. **RSS**: peak of the process, scoring included.
- A camera that only rotates has no path: its position errors are empty, its rotation error counts.
"""


def results_page(
    runs: Sequence[dict[str, Any]], machine: str, command: str, repeat: str = ""
) -> str:
    """Return the page for evaluations of any models, calibrated or not."""
    parts = [
        "# Results",
        f"Made by `{command}` with stream4d {runs[0]['run']['version']} (code {runs[0]['run']['code']}) on {machine}. "
        "Clips: the shared evaluation clips. No clip is treated specially, but constants of the pose chain were chosen "
        "on these same clips taken together: there is no held-out set yet. The inflation of its covariances was chosen "
        "on rendered clips that are not among them. What goes wrong is listed too.",
        *([repeat] if repeat else []),
        *(_model_section(run) for run in runs),
        _peer_section(runs),
        _benchmark_section(),
        _worse_section(runs),
        NOTES.rstrip(),
    ]
    return "\n\n".join(parts) + "\n"


def _model_section(run: dict[str, Any]) -> str:
    kind = "calibrated" if run["calibrated"] else "uncalibrated"
    flag = " --calibrated" if run["calibrated"] else ""
    parts = [
        f"## Model `{run['model']}`, {kind}",
        f"`stream4d eval CLIPS/* --model {run['model']}{flag} --json out.json`",
    ]
    for title, keys in (
        ("Camera", POSE),
        ("Depth and motion", SCENE),
        ("Flow", FLOW),
        ("Speed and memory", SPEED),
    ):
        relevant = [row for row in run["sequences"] if _has(row, keys) or row["status"] != "ok"]
        if any(_has(row, keys) for row in relevant):
            shown = {**run, "sequences": relevant, "mean": mean_row(relevant)}
            heading, lines = cells(shown, keys)
            parts += [f"### {title}", markdown_table(heading, lines)]
    parts += _reliability_table(run)
    parts += _more_table(run)
    reasons = [f"- `{name}` failed: {reason}" for name, reason in failed(run)]
    return "\n\n".join([*parts, *(["\n".join(reasons)] if reasons else [])])


def _reliability_table(run: dict[str, Any]) -> list[str]:
    """Return the table of errors within 1σ, 2σ and 3σ as stated, position and rotation apart."""
    shares = {
        name: [*details["position_in_sigma"], *details["rotation_in_sigma"]]
        for name, details in run["details"].items()
        if details.get("position_in_sigma") is not None
    }
    if not shares:
        return []
    shares["mean"] = pooled(list(shares.values()))
    heading = [f"{part} in {level}σ" for part in ("position", "rotation") for level in LEVELS]
    lines = [
        [name, *("–" if value is None else f"{value:.2f}" for value in values)]
        for name, values in shares.items()
    ]
    return [
        "### Stated uncertainty of poses",
        "An honest Gaussian holds 0.68, 0.95 and 1.00. A clip's errors are one walk: the mean says more than a line.",
        markdown_table(["sequence", *heading], lines),
    ]


def _more_table(run: dict[str, Any]) -> list[str]:
    """Return the table of figures that the JSON keeps under ``details``."""
    found = {
        row["name"]: [_at(run["details"].get(row["name"], {}), path) for path, _ in MORE]
        for row in run["sequences"]
    }
    lines = [
        [name, *("–" if value is None else f"{value:.3f}" for value in values)]
        for name, values in found.items()
        if any(value is not None for value in values)
    ]
    if not lines:
        return []
    return ["### More", markdown_table(["sequence", *(title for _, title in MORE)], lines)]


def _at(details: Any, path: str) -> float | None:
    for key in path.split("."):
        details = details.get(key) if isinstance(details, dict) else None
    return details if isinstance(details, float | int) else None


def _has(row: dict[str, Any], keys: Iterable[str]) -> bool:
    return any(row[key] is not None for key in keys)


def ours_beside(run: dict[str, Any], peer: Peer) -> float | None:
    """Return our mean over the peer's clips, or None where a clip is missing or failed."""
    rows = {row["name"]: row for row in run["sequences"]}
    values = [rows[name][peer.figure] if name in rows else None for name in peer.clips]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def is_worse(ours: float, peer: Peer) -> bool:
    """Tell whether our figure is worse than the published one."""
    return ours > peer.value if peer.figure in SMALLER_IS_BETTER else ours < peer.value


def _peer_section(runs: Sequence[dict[str, Any]]) -> str:
    heading = ["system", "figure", "published", "data", "camera", "machine"]
    heading += [
        f"ours: {run['model']}" + (", calibrated" if run["calibrated"] else "") for run in runs
    ]
    lines = []
    for peer in PEERS:
        ours = [
            ours_beside(run, peer) if run["calibrated"] == peer.calibrated else None for run in runs
        ]
        lines.append(
            [
                peer.system,
                HEADINGS[peer.figure],
                f"{peer.value:.3g}",
                peer.data + ("" if peer.same_data else " (ours: another selection)"),
                "given" if peer.calibrated else "not given",
                peer.machine,
                *("–" if value is None else f"{value:.3g}" for value in ours),
            ]
        )
    sources = "\n".join(f"- {source}" for source in dict.fromkeys(peer.source for peer in PEERS))
    return "\n\n".join(
        [
            "## Beside published figures",
            "Published by others on their machines, quoted and not measured by us. Where the data differ, the figures "
            "only give the scale of what the field reaches.",
            markdown_table(heading, lines),
            "Sources:",
            sources,
        ]
    )


def _benchmark_section() -> str:
    lines = [
        [system, *("–" if value is None else f"{value:.3g}" for value in values), source]
        for system, values, source in BENCHMARK_ATE
    ]
    return "\n\n".join(
        [
            "## Benchmarks that were not run here",
            "Their data are not among the clips. `stream4d eval --dataset NAME --root DIR` measures them by the "
            "published protocols; these are mean ATE (m) of others to compare with.",
            markdown_table(["system", *BENCHMARKS, "source"], lines),
        ]
    )


def _worse_section(runs: Sequence[dict[str, Any]]) -> str:
    parts = [
        "## Where we are worse",
        "Found by fixed rules over the tables above: published figures that beat ours, clips with ATE above 2 % of the "
        "path, frames without a measured pose, wrong cameras, masks on static clips, flow no better than DIS, and "
        "uncertainties that are not honest.",
    ]
    for run in runs:
        lines = [*_worse_than_peers(run)]
        for row in run["sequences"]:
            said = "; ".join(_weaknesses(row, run["details"].get(row["name"], {})))
            lines += [f"`{row['name']}`: {said}"] if said else []
        body = "\n".join(f"- {line}" for line in lines) or "- nothing that these rules find"
        parts += [f"### {_name(run)}", body]
    return "\n\n".join(parts)


def _worse_than_peers(run: dict[str, Any]) -> Iterable[str]:
    for peer in PEERS:
        ours = ours_beside(run, peer) if run["calibrated"] == peer.calibrated else None
        if ours is not None and is_worse(ours, peer):
            figure = HEADINGS[peer.figure]
            yield f"{figure} {ours:.3g} against {peer.value:.3g} of {peer.system} ({peer.data})"


def _weaknesses(row: dict[str, Any], details: dict[str, Any]) -> Iterable[str]:
    if row["status"] != "ok":
        yield f"failed ({row['reason']})"
        return
    if row["ate_percent"] is not None and row["ate_percent"] > 2:
        yield f"ATE {row['ate_percent']:.1f} % of the path"
    posed = row["frames_with_pose"]
    if posed is not None and posed < row["frames"]:
        yield f"{row['frames'] - posed} of {row['frames']} frames without a measured pose"
    if row["focal_error_percent"] is not None and row["focal_error_percent"] > 5:
        yield f"focal length wrong by {row['focal_error_percent']:.0f} %"
    static = row["static_share"]
    if details.get("kind") == "static" and static is not None and static < 0.99:
        yield f"{100 * (1 - static):.1f} % of a static scene masked as moving"
    if row["depth_delta1"] is not None and row["depth_delta1"] < 0.6:
        yield f"depth δ<1.25 only {row['depth_delta1']:.2f}"
    if row["depth_abs_rel"] is not None and row["depth_abs_rel"] > 1:
        yield f"depth with wild outliers (AbsRel {row['depth_abs_rel']:.1f})"
    if row["mask_j"] is not None and row["mask_j"] < 0.5:
        yield f"mask J {row['mask_j']:.2f}"
    if row["flow_epe"] is not None and row["flow_epe"] > 0.995 * row["flow_dis_epe"]:
        yield f"flow no better than DIS ({row['flow_epe']:.2f} against {row['flow_dis_epe']:.2f} px)"
    share = row["pose_in_1sigma"]
    if share is not None and not 0.6 <= share <= 0.75:
        said = "too large" if share > 0.75 else "too small"
        yield f"stated pose uncertainty {said} ({share:.2f} of errors within 1σ)"


def _name(run: dict[str, Any]) -> str:
    return f"`{run['model']}`, {'calibrated' if run['calibrated'] else 'uncalibrated'}"
