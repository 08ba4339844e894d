"""The parts of the flow network against slow twins: matching, propagation, upsampling, XFeat's weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stream4d.models import frame_encoder, matching, sampling
from stream4d.models.flow_propagation import Propagation


def test_warp_by_nothing_and_by_whole_pixels() -> None:
    x = torch.rand(1, 2, 5, 7)
    torch.testing.assert_close(sampling.warp(x, torch.zeros(1, 2, 5, 7)), x)
    flow = torch.zeros(1, 2, 5, 7)
    flow[:, 0], flow[:, 1] = 2, -1
    torch.testing.assert_close(sampling.warp(x, flow)[..., 1:, :-2], x[..., :-1, 2:])


def test_local_correlation_equals_its_slow_twin() -> None:
    a, b = torch.randn(1, 6, 4, 5), torch.randn(1, 6, 4, 5)
    found = matching.local_correlation(a, b, 1)
    for y in range(4):
        for x in range(5):
            for i, (dy, dx) in enumerate((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                inside = 0 <= y + dy < 4 and 0 <= x + dx < 5
                dot = float(a[0, :, y, x] @ b[0, :, y + dy, x + dx]) / 4 if inside else 0.0
                assert found[0, i, y, x].item() == pytest.approx(dot, abs=1e-5)


def test_global_match_finds_a_shift() -> None:
    """Cells at 1/16 hold 2×2 descriptors: a shift of 4 and 2 descriptors is one of 2 and 1 cells."""
    torch.manual_seed(0)
    cells = torch.randn(1, 32, 9, 14)
    scene = nn.functional.normalize(cells.repeat_interleave(2, 2).repeat_interleave(2, 3), dim=1)
    a, b = scene[..., 2:, 4:], scene[..., :-2, :-4]
    match = matching.global_match(a, b, torch.tensor(40.0))
    assert match.cell == 16
    assert match.logp is not None
    assert match.logp.shape == (1, 96, 96)
    assert match.flow.shape == (2, 2, 16, 24)
    inner = match.flow[0, :, :-4, :-6]
    torch.testing.assert_close(inner[0], torch.full_like(inner[0], 4.0), atol=0.1, rtol=0)
    torch.testing.assert_close(inner[1], torch.full_like(inner[1], 2.0), atol=0.1, rtol=0)
    assert match.confidence[0, 0, :-4, :-6].min() > 0.9
    assert match.confidence[0, 0, :, -4:].mean() < 0.3


def test_propagation_fills_what_cannot_be_trusted() -> None:
    """Two surfaces of their own colour and flow; a hole in the left one takes the left flow, not the right one."""
    H, W = 64, 96
    flow = torch.zeros(2, 2, H, W)
    flow[0, 0, :, :48], flow[0, 0, :, 48:] = 2.0, -6.0
    flow[1] = -flow[0]
    colour = torch.full((2, 3, H // 4, W // 4), 0.2)
    colour[..., 12:] = 0.8
    truth = flow.clone()
    hole = (slice(None), slice(None), slice(24, 40), slice(36, 48))
    flow[hole] = 200.0  # out of the image
    mended = Propagation()(flow, torch.zeros(2, 1, H, W), colour)
    cells = torch.nn.functional.avg_pool2d(truth, 4)
    assert mended.trust[0, 0, 6:10, 9:12].max() < 0.2
    torch.testing.assert_close(
        mended.flow[0, :, 6:10, 9:12], cells[0, :, 6:10, 9:12], atol=0.3, rtol=0
    )
    far = mended.flow[0, :, :, :6]
    torch.testing.assert_close(far, cells[0, :, :, :6], atol=1e-3, rtol=0)


def test_convex_upsampling_keeps_constants_and_can_copy() -> None:
    values = torch.rand(1, 2, 3, 4)
    flat = sampling.convex_upsample(torch.ones(1, 1, 3, 4), torch.randn(1, 144, 3, 4))
    torch.testing.assert_close(flat, torch.ones(1, 1, 12, 16))
    centre = torch.full((1, 9, 4, 4, 3, 4), -50.0)
    centre[:, 4] = 50
    copied = sampling.convex_upsample(values, centre.reshape(1, 144, 3, 4))
    torch.testing.assert_close(copied, values.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_resized_flow_keeps_its_meaning() -> None:
    flow = torch.ones(1, 2, 8, 12)
    small = sampling.resize_flow(flow, (4, 3))
    torch.testing.assert_close(small[0, 0], torch.full((4, 3), 0.25))
    torch.testing.assert_close(small[0, 1], torch.full((4, 3), 0.5))


def test_xfeat_folds_its_batch_norm() -> None:
    """A layer with running statistics equals our plain convolution with the folded weights."""
    torch.manual_seed(0)
    names = [f"block1.{i}" for i in range(4)] + [f"block2.{i}" for i in range(2)]
    names += [f"block3.{i}" for i in range(3)] + [f"block4.{i}" for i in range(3)]
    names += [f"block5.{i}" for i in range(4)] + ["block_fusion.0", "block_fusion.1"]
    encoder = frame_encoder.FrameEncoder()
    ours = {k: v for k, v in encoder.state_dict().items() if k.endswith("weight")}
    public: dict[str, torch.Tensor] = {}
    for name in names:
        weight = torch.randn_like(ours[name.replace("block_fusion", "fusion") + ".weight"])
        public[f"{name}.layer.0.weight"] = weight
        public[f"{name}.layer.1.running_mean"] = torch.randn(len(weight))
        public[f"{name}.layer.1.running_var"] = torch.rand(len(weight)) + 0.5
    for name, key in (("skip1.1", "skip"), ("block_fusion.2", "fused")):
        public[f"{name}.weight"] = torch.randn_like(ours[f"{key}.weight"])
        public[f"{name}.bias"] = torch.randn(len(ours[f"{key}.weight"]))
    report = encoder.load_state_dict(frame_encoder.convert_xfeat(public), strict=False)
    assert not report.unexpected_keys
    assert {k.split(".")[0] for k in report.missing_keys} == {"colour", "residual"}
    x = torch.randn(1, 24, 6, 6)
    norm = nn.BatchNorm2d(64, affine=False).eval()
    norm.running_mean, norm.running_var = (
        public["block3.0.layer.1.running_mean"], public["block3.0.layer.1.running_var"],
    )  # fmt: skip
    plain = nn.functional.conv2d(x, public["block3.0.layer.0.weight"], stride=2, padding=1)
    torch.testing.assert_close(encoder.block3[0](x), norm(plain).relu(), atol=1e-4, rtol=1e-4)
