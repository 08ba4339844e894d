"""Losses against cases computed by hand, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stream4d.train import losses


def full(value: float, *shape: int) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.float64)


def test_masked_mean_of_nothing_is_zero_with_a_gradient() -> None:
    values = torch.ones(2, 3, requires_grad=True)
    loss = losses.masked_mean(values, torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert torch.equal(values.grad, torch.zeros(2, 3))


def test_masked_mean_counts_only_the_mask() -> None:
    values = torch.tensor([1.0, 2.0, 100.0])
    assert losses.masked_mean(values, torch.tensor([True, True, False])) == 1.5


def test_mixture_of_equal_components_is_plain_laplace() -> None:
    """With the wide scale at 1 both components are Lap(0, 1): |e| + log 2 for each of two axes."""
    flow, target = full(0.0, 1, 2, 1, 1), full(3.0, 1, 2, 1, 1)
    mixture = torch.tensor([0.7, 0.0]).double().view(1, 2, 1, 1)
    found = losses.mixture_laplace(flow, target, mixture)
    assert found.item() == pytest.approx(2 * (3 + math.log(2)))


def test_mixture_matches_the_density_written_out() -> None:
    error, logit, beta = 5.0, -0.4, 1.3
    alpha = 1 / (1 + math.exp(-logit))
    b = math.exp(beta)
    density = alpha * math.exp(-error / b) / (2 * b) + (1 - alpha) * math.exp(-error) / 2
    mixture = torch.tensor([logit, beta]).double().view(1, 2, 1, 1)
    flow = torch.tensor([error, 0.0]).double().view(1, 2, 1, 1)
    zero = alpha / (2 * b) + (1 - alpha) / 2
    expected = -math.log(density) - math.log(zero)
    found = losses.mixture_laplace(flow, torch.zeros_like(flow), mixture).item()
    assert found == pytest.approx(expected)


def test_mixture_gradient_is_the_derivative() -> None:
    torch.manual_seed(0)
    flow = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    mixture = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(1, 2, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda f, m: losses.mixture_laplace(f, target, m), (flow, mixture)
    )


def test_later_steps_weigh_more_and_early_ones_do_not_teach_the_mixture() -> None:
    target, valid = full(0.0, 1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    mixture = torch.zeros(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    good, bad = target.clone(), target + 2
    late = losses.flow_sequence_loss([good, bad], target, mixture, valid)
    early = losses.flow_sequence_loss([bad, good], target, mixture, valid)
    assert late > early
    (alone,) = torch.autograd.grad(
        losses.flow_sequence_loss([good], target, mixture, valid), mixture
    )
    (both,) = torch.autograd.grad(
        losses.flow_sequence_loss([bad, good], target, mixture, valid), mixture
    )
    assert torch.allclose(alone, both)


def test_errors_beyond_400_px_are_left_out() -> None:
    target = full(500.0, 1, 2, 2, 2)
    found = losses.flow_sequence_loss(
        [torch.zeros_like(target)],
        target,
        torch.zeros_like(target),
        torch.ones(1, 2, 2, dtype=torch.bool),
    )
    assert found == 0


def test_the_stated_scale_is_best_at_the_mean_error() -> None:
    """|e|/b + log 2b is least at b = |e|; there it is 1 + log 2|e|. The flow gets no gradient."""
    flow = full(0.5, 1, 2, 1, 1).requires_grad_()
    scale = full(math.log(0.5), 1, 1, 1, 1).requires_grad_()
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    loss = losses.laplace_scale_loss(flow, torch.zeros_like(flow), scale, valid)
    loss.backward()
    assert loss.item() == pytest.approx(1 + math.log(2 * 0.5))
    assert scale.grad.item() == pytest.approx(0, abs=1e-12)
    assert flow.grad is None


def test_match_loss_reads_the_true_cell() -> None:
    """Two by two cells of 8 px; everything moves one cell to the right: cells 0 and 2 have a target, 1 and 3 leave."""
    logp = torch.full((1, 4, 4), -9.0)
    logp[0, 0, 1], logp[0, 2, 3] = -1.0, -3.0
    flow = torch.zeros(1, 2, 16, 16)
    flow[:, 0] = 8
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    assert losses.match_loss(logp, 8, flow, valid).item() == pytest.approx(2.0)


def test_motion_loss_of_a_sure_and_right_answer_is_nothing() -> None:
    moving = torch.zeros(1, 4, 4)
    moving[0, :2] = 1
    sure = (moving * 2 - 1) * 40
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    assert losses.motion_loss(sure, moving, valid).item() == pytest.approx(0, abs=1e-6)
    # All wrong: the cross-entropy is 40 per pixel, the Dice overlap nil.
    assert losses.motion_loss(-sure, moving, valid).item() == pytest.approx(41, abs=1e-4)


def test_motion_loss_of_an_undecided_answer() -> None:
    """p = 1/2 everywhere, half of it moving: log 2 + 1 - 2·(N/4) / (N/2 + N/2)."""
    moving = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    found = losses.motion_loss(torch.zeros(1, 2, 2), moving, valid).item()
    assert found == pytest.approx(math.log(2) + 0.5)


def test_still_images_have_no_dice_term() -> None:
    nothing = torch.zeros(1, 3, 3)
    found = losses.motion_loss(nothing, nothing, torch.ones(1, 3, 3, dtype=torch.bool))
    assert found.item() == pytest.approx(math.log(2))


def test_typical_distance() -> None:
    points = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 20.0], [9.0, 9.0, 9.0]]])
    valid = torch.tensor([[True, True, False]])
    assert losses.typical_distance(points, valid).item() == pytest.approx(10.0)


def test_confident_pointmaps_pay_for_low_confidence() -> None:
    """Twice as far or half as far: off by 2 - 1 over √2 at scale b = e^s, error / b + s."""
    target = torch.tensor([[[0.0, 0.0, 2.0]]])
    for factor in (2.0, 0.5):
        found = losses.confident_pointmap_loss(
            target * factor, target, torch.full((1, 1), -1.0), torch.ones(1, 1, dtype=torch.bool)
        )
        assert found.item() == pytest.approx(math.e / math.sqrt(2) - 1, abs=1e-5)


def test_gradient_loss_ignores_a_constant_factor() -> None:
    torch.manual_seed(0)
    target = torch.randn(1, 16, 16)
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    assert losses.gradient_loss(target + 3, target, valid).item() == pytest.approx(0, abs=1e-5)
    ramp = target + torch.arange(16.0)
    # The slope grows with the step: 1 + 2 + 4 + 8 along x, nothing along y.
    assert losses.gradient_loss(ramp, target, valid).item() == pytest.approx(15, abs=1e-4)


def rotation_z(angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


@pytest.mark.parametrize("angle", [1e-4, 0.3, 2.0, 3.1])
def test_rotation_angle(angle: float) -> None:
    found = losses.rotation_angle(rotation_z(angle), torch.eye(3)).item()
    assert found == pytest.approx(angle, rel=2e-2 if angle < 1e-3 else 1e-4)


def test_rotation_angle_has_a_finite_gradient_at_zero() -> None:
    R = torch.eye(3).requires_grad_()
    losses.rotation_angle(R, torch.eye(3)).backward()
    assert torch.isfinite(R.grad).all()


def test_focal_loss_is_symmetric_in_ratio() -> None:
    valid = torch.tensor([True])
    double = losses.focal_loss(torch.tensor([2.0]), torch.tensor([1.0]), valid)
    half = losses.focal_loss(torch.tensor([1.0]), torch.tensor([2.0]), valid)
    assert double.item() == pytest.approx(math.log(2))
    assert half.item() == pytest.approx(math.log(2))


def test_alignment_of_a_moving_camera() -> None:
    """A wall 4 m ahead, the camera moves 0.5 m towards it: exact depths agree, wrong ones do not."""
    a, b = torch.zeros(1, 6, 8, 3), torch.zeros(1, 6, 8, 3)
    a[..., 2], b[..., 2] = 4.0, 3.5
    b_from_a = torch.eye(4)[None].clone()
    b_from_a[0, 2, 3] = -0.5
    flow, static = torch.zeros(1, 2, 6, 8), torch.ones(1, 6, 8, dtype=torch.bool)
    assert losses.alignment_loss(a, b, flow, b_from_a, static).item() == pytest.approx(0, abs=1e-6)
    wrong = losses.alignment_loss(a, b * 1.2, flow, b_from_a, static).item()
    assert wrong == pytest.approx(0.2, abs=1e-5)


def test_consistency_allows_bias_but_no_flicker() -> None:
    truth = torch.zeros(1, 4, 6)
    flow, seen = torch.zeros(1, 2, 4, 6), torch.ones(1, 4, 6, dtype=torch.bool)
    same = losses.consistency_loss(truth + 0.7, truth + 0.7, truth, truth, flow, seen)
    flicker = losses.consistency_loss(truth + 0.7, truth + 0.8, truth, truth, flow, seen)
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert flicker.item() == pytest.approx(0.1, abs=1e-5)
    later = (truth + 0.8).requires_grad_()
    losses.consistency_loss(truth, later, truth, truth, flow, seen).backward()
    assert torch.allclose(later.grad, torch.full_like(truth, 1 / 24))


def test_photometric_loss_is_least_at_the_true_flow() -> None:
    torch.manual_seed(0)
    scene = torch.rand(1, 3, 16, 24)
    a, b = scene[..., 2:18], scene[..., :16]  # b shows the same 2 px further right
    seen = torch.ones(1, 16, 16, dtype=torch.bool)

    def loss(shift: float) -> float:
        flow = torch.zeros(1, 2, 16, 16)
        flow[:, 0] = shift
        return losses.photometric_loss(a, b, flow, seen).item()

    # SSIM looks at 3×3 windows: the last column before the border still sees the padding.
    assert loss(2.0) < 0.03
    assert loss(2.0) < 0.2 * min(loss(1.0), loss(3.0))


def test_smoothness_spares_image_edges() -> None:
    flow, flat = torch.zeros(1, 2, 4, 8), torch.zeros(1, 3, 4, 8)
    flow[..., 4:] = 1
    edge = flat.clone()
    edge[..., 4:] = 1
    # One of seven columns of differences jumps by 1.
    assert losses.smoothness_loss(flow, flat).item() == pytest.approx(1 / 7)
    assert losses.smoothness_loss(flow, edge).item() == pytest.approx(math.exp(-10) / 7)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, t, v: losses.gradient_loss(x, t, v),
        lambda x, t, v: losses.motion_loss(x, (t > 0).double(), v),
        lambda x, t, v: losses.confident_pointmap_loss(
            x.view(1, -1, 3),
            t.view(1, -1, 3),
            x.view(1, -1, 3)[..., 0] * 0.1,
            v.view(1, -1, 3)[..., 0],
        ),
    ],
    ids=["gradient", "motion", "pointmap"],
)
def test_gradients_are_derivatives(loss) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    x = torch.tensor(rng.normal(size=(1, 4, 6)), requires_grad=True)
    target = torch.tensor(rng.normal(size=(1, 4, 6)) * 0.1)
    valid = torch.tensor(rng.random((1, 4, 6)) < 0.8)
    assert torch.autograd.gradcheck(lambda y: loss(y, target, valid), (x,), atol=1e-5)
