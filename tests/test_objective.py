import pytest
import torch
import torch.nn.functional as F

from data_selection.activeft import reference
from data_selection.activeft.assignment import nearest_of_all
from data_selection.activeft.objective import (
    gradient_through_normalisation,
    log_repulsion,
    loss_and_gradient,
    weighted_sums,
)


def random_problem(n: int = 400, d: int = 24, k: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(n, d, generator=generator), dim=1), 3 * torch.randn(k, d, generator=generator)


def loss_and_theta_gradient(features, theta, tau, balance):
    norms = theta.norm(dim=1, keepdim=True)
    centres = theta / norms
    loss, gradient = loss_and_gradient(features, *nearest_of_all(features, centres), centres, tau, balance)
    return loss, gradient_through_normalisation(gradient, centres, norms)


@pytest.mark.parametrize("tau", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0, 3.0])
def test_loss_and_gradient_equal_autograd_of_the_naive_formula(tau, balance):
    features, theta = random_problem()
    loss, gradient = loss_and_theta_gradient(features, theta, tau, balance)
    exact_theta = theta.double().requires_grad_()
    exact = reference.loss(features.double(), exact_theta, tau, balance)
    (exact_gradient,) = torch.autograd.grad(exact, exact_theta)
    torch.testing.assert_close(loss.double(), exact.detach(), rtol=1e-5, atol=1e-6)
    scale = float(exact_gradient.abs().max())
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-3, atol=1e-5 * scale + 1e-12)


@pytest.mark.parametrize("tau", [0.01, 0.001])
def test_small_temperatures_overflow_nothing(tau):
    features, theta = random_problem()
    loss, gradient = loss_and_theta_gradient(features, theta, tau, 1.0)
    assert loss.isfinite() and gradient.isfinite().all()
    exact_loss, _ = loss_and_theta_gradient(features.double(), theta.double(), tau, 1.0)
    torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-4, atol=0)


def test_repulsion_in_blocks_is_the_softmax_over_all_prototypes(monkeypatch):
    centres = F.normalize(random_problem()[1], dim=1)
    monkeypatch.setattr("data_selection.activeft.objective.BLOCK", 7)
    log_s, pushed_from = log_repulsion(centres, 0.07)
    logits = centres @ centres.T / 0.07
    torch.testing.assert_close(log_s, logits.logsumexp(dim=1))
    torch.testing.assert_close(pushed_from, logits.softmax(dim=1) @ centres)


def test_prototypes_without_samples_have_no_attraction():
    features, _ = random_problem(n=5)
    weight, nearest = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([3, 1, 3, 0, 1])
    sums = weighted_sums(features, weight, nearest, 6)
    expected = torch.zeros(6, features.shape[1]).index_add_(0, nearest, features * weight[:, None])
    torch.testing.assert_close(sums, expected)
    assert not sums[[2, 4, 5]].any()
