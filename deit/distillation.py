"""Training losses: against the labels, and against a teacher (Touvron et al., DeiT, 2021)."""

import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn


def base_criterion(soft_targets: bool, smoothing: float) -> nn.Module:
    """Cross entropy: with soft targets (mixup, which has the smoothing in them), with label smoothing, or plain."""
    if soft_targets:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()


class DistillationLoss(nn.Module):
    """(1 - alpha) * base loss of the class head + alpha * distillation loss of the distillation head.

    soft: tau^2 / numel * sum KL(teacher / tau || student / tau); hard: cross entropy with the teacher's argmax.
    kind "none" is the base loss alone.
    """

    def __init__(self, base: nn.Module, teacher: nn.Module | None, kind: str, alpha: float, tau: float):
        super().__init__()
        self.base, self.teacher, self.kind, self.alpha, self.tau = base, teacher, kind, alpha, tau

    def forward(self, images: Tensor, outputs: Tensor | tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """images (b, 3, h, w), outputs (b, c) or one such for each head, targets (b,) or soft (b, c) -> scalar."""
        by_class, by_distillation = outputs if isinstance(outputs, tuple) else (outputs, None)
        loss = self.base(by_class, targets)
        if self.kind == "none":
            return loss
        with torch.no_grad():
            teacher = self.teacher(images)
        if self.kind == "soft":
            distillation = soft_distillation(by_distillation, teacher, self.tau)
        else:
            distillation = F.cross_entropy(by_distillation, teacher.argmax(dim=1))
        return loss * (1 - self.alpha) + distillation * self.alpha


def soft_distillation(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """tau^2 / numel * sum KL over logits (b, c). (The published code divides by b * c, not by b.)"""
    student, teacher = (F.log_softmax(logits / tau, dim=1) for logits in (student, teacher))
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * tau**2 / student.numel()
