"""Training losses against their formulas, written out."""

import numpy as np
import pytest
import torch
from conftest import tiny_vit
from timm.data import Mixup

from deit.engine import ClassificationLoss, base_criterion, soft_distillation

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -0.3]])
TARGETS = torch.tensor([0, 2])


def log_softmax(rows: np.ndarray) -> np.ndarray:
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def test_label_smoothing_spreads_a_tenth_of_the_target_over_all_classes():
    soft = np.full((2, 3), 0.1 / 3)
    soft[[0, 1], TARGETS] += 0.9
    expected = -(soft * log_softmax(LOGITS.double().numpy())).sum(axis=1).mean()
    assert base_criterion(False, 0.1)(LOGITS, TARGETS).item() == pytest.approx(expected, abs=1e-6)


def test_no_smoothing_is_cross_entropy():
    expected = -log_softmax(LOGITS.double().numpy())[[0, 1], TARGETS].mean()
    assert base_criterion(False, 0.0)(LOGITS, TARGETS).item() == pytest.approx(expected, abs=1e-6)


def test_mixup_mixes_a_batch_with_its_reverse_and_its_smoothed_targets_alike():
    np.random.seed(0)
    mixup = Mixup(mixup_alpha=0.8, prob=1.0, label_smoothing=0.1, num_classes=3)
    images = torch.randn(2, 3, 4, 4)
    mixed, targets = mixup(images.clone(), TARGETS)
    share = ((mixed - images.flip(0)) / (images - images.flip(0))).mean()
    one_hot = torch.nn.functional.one_hot(TARGETS, 3) * 0.9 + 0.1 / 3
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0), rtol=1e-4, atol=1e-4)
    expected = -(targets * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(base_criterion(True, 0.1)(LOGITS, targets), expected)


def test_soft_distillation_is_tau_squared_kl_over_the_number_of_logits():
    tau = 3.0
    student, teacher = LOGITS.double(), LOGITS.flip(1).double() * 2
    p, q = (log_softmax(logits.numpy() / tau) for logits in (teacher, student))
    expected = (np.exp(p) * (p - q)).sum() * tau**2 / 6
    assert soft_distillation(student, teacher, tau).item() == pytest.approx(expected, abs=1e-9)


def test_hard_distillation_weighs_the_teachers_class_with_alpha():
    teacher_logits = torch.tensor([[0.0, 5.0, 1.0], [4.0, 0.0, 0.0]])
    teacher = lambda images: teacher_logits  # noqa: E731
    loss = ClassificationLoss(base_criterion(False, 0.0), teacher=teacher, kind="hard", alpha=0.25)
    by_distillation = LOGITS * 0.5
    base = -LOGITS.log_softmax(1)[[0, 1], TARGETS].mean()
    hard = -by_distillation.log_softmax(1)[[0, 1], [1, 0]].mean()
    actual = loss(lambda images: (LOGITS, by_distillation), torch.empty(0), TARGETS)
    torch.testing.assert_close(actual, 0.75 * base + 0.25 * hard)


def test_without_a_teacher_a_distilled_model_learns_from_its_class_head():
    loss = ClassificationLoss(base_criterion(False, 0.0))
    expected = base_criterion(False, 0.0)(LOGITS, TARGETS)
    torch.testing.assert_close(loss(lambda images: (LOGITS, LOGITS * 0), torch.empty(0), TARGETS), expected)
    torch.testing.assert_close(loss(lambda images: LOGITS, torch.empty(0), TARGETS), expected)


def test_tiny_vit_of_the_tests_depends_on_its_input():
    model = tiny_vit()
    assert not torch.allclose(model(torch.zeros(1, 3, 32, 32)), model(torch.ones(1, 3, 32, 32)))


def test_the_last_image_of_an_odd_batch_counts_with_its_smoothed_label():
    base = base_criterion(True, 0.1)
    mixup = Mixup(mixup_alpha=0.8, prob=0.0, label_smoothing=0.1, num_classes=3)
    loss = ClassificationLoss(base, mixup)
    images = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 2, 1])
    plain = ClassificationLoss(base_criterion(False, 0.1))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    for count in (1, 2, 3):  # prob 0: nothing is mixed
        expected = plain(model, images[:count].clone(), targets[:count])
        torch.testing.assert_close(loss(model, images[:count].clone(), targets[:count]), expected)
    assert len(ClassificationLoss(base, Mixup(mixup_alpha=0.8, prob=1.0, label_smoothing=0.1, num_classes=3))(
        lambda images: torch.zeros(len(images), 3), images.clone(), targets).shape) == 0  # fmt: skip
