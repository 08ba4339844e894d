"""Make ``tests/data/golden`` from the full set: weights, inputs and final outputs, at most 20 MB.

Run by hand after the full set changes: ``python tests/reduce_golden.py``.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from golden import FULL, REDUCED
from safetensors.torch import load_file, save_file

TINY = {
    # Final outputs of each file; the full set has every intermediate tensor too.
    "dust3r_dpt": r"(land|mixed)\.(pts3d|conf)",
    "dust3r_linear": r"(land|mixed)\.(pts3d|conf)",
    "vggt": r"(pose_enc_iter3|land\.(depth|depth_conf|world_points))$",
    "vggt_track": r"(coords_iter2|vis|conf)$",
    "streamvggt": r"(camera_pose|depth|depth_conf)$",
    "must3r": r"(update4\.raw|seq\.render\.raw|labels|n_imgs)$",
    "da3": r"(two|four|pose|port)\.(depth|depth_conf|extrinsics|intrinsics|ref_view)$",
    "mapanything_v1_1": r"\.(depth_along_ray|conf|camera_poses|metric_scaling_factor)$",
    "siu3r": r"(seg\.|gs\.(means|opacities|semantic_labels|instance_labels))",
}
SHARED = {"dust3r_linear": "dust3r_dpt", "streamvggt": "vggt"}
"""Files whose weights are (mostly) those of another: only what differs is kept."""
POST = (
    "dust3r_focal",
    "dust3r_preprocess",
    "dust3r_global_alignment",
    "monst3r",
    "vggt_geometry",
    "vggt_preprocess",
    "must3r_preprocess",
    "da3_post",
    "da3_preprocess",
    "mapanything_preprocess",
    "siu3r_preprocess",
)
MANIFESTS = (
    "dust3r_512_dpt",
    "dust3r_512_dpt.hf",
    "dust3r_224_linear",
    "must3r_512",
    "vggt_1b",
    "da3-small",
    "da3-base",
    "mapanything_v1_1.hf",
    "siu3r",
)
DROPPED = ("sensitivity", "inputs", "outputs", "weights", "inputs_doc", "outputs_doc", "tensors")


def main() -> None:
    """Write the reduced set anew."""
    shutil.rmtree(REDUCED, ignore_errors=True)
    for kind in ("tiny", "post", "manifests"):
        (REDUCED / kind).mkdir(parents=True)
    for name, wanted in TINY.items():
        reduce_tiny(name, wanted)
    for name in POST:
        copy_info("post", name, {})
        if (FULL / "post" / f"{name}.safetensors").is_file():
            shutil.copy(FULL / "post" / f"{name}.safetensors", REDUCED / "post")
    for name in MANIFESTS:
        source = json.loads((FULL / "manifests" / f"{name}.json").read_text(encoding="utf-8"))
        write_json(REDUCED / "manifests" / f"{name}.json", source)
    total = sum(p.stat().st_size for p in REDUCED.rglob("*") if p.is_file())
    assert total < 20e6, f"{total / 1e6:.1f} MB"


def reduce_tiny(name: str, wanted: str) -> None:
    """Keep inputs, weights that are not another file's, and the outputs that match."""
    tensors = load_file(FULL / "tiny" / f"{name}.safetensors")
    extra: dict[str, object] = {}
    other = {}
    if name in SHARED:
        extra["weights_from"] = SHARED[name]
        other = load_file(FULL / "tiny" / f"{SHARED[name]}.safetensors")
        foreign = {
            k.removeprefix("weight.") for k in other.keys() - tensors.keys() if "weight." in k
        }
        extra["weights_without"] = sorted({k.split(".")[0] + "." for k in foreign})
    kept = {}
    for key, value in tensors.items():
        is_shared = key.startswith("weight.") and key in other and torch.equal(value, other[key])
        is_intermediate = key.startswith("output.") and not re.search(wanted, key)
        if not is_shared and not is_intermediate:
            kept[key] = value
    save_file(kept, REDUCED / "tiny" / f"{name}.safetensors")
    copy_info("tiny", name, extra)


def copy_info(kind: str, name: str, extra: dict[str, object]) -> None:
    """Copy a sidecar without what no test reads."""
    info = json.loads((FULL / kind / f"{name}.json").read_text(encoding="utf-8"))
    write_json(
        REDUCED / kind / f"{name}.json",
        {k: v for k, v in info.items() if k not in DROPPED} | extra,
    )


def write_json(path: Path, value: object) -> None:
    """Write compact JSON."""
    path.write_text(json.dumps(value, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main()
