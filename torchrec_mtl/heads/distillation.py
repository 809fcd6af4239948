"""What a student learns from a teacher's logits, row by row."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Distillation = Literal["kl", "soft_label", "logit_mse"]


def distillation(kind: Distillation, student: Tensor, teacher: Tensor) -> Tensor:
    """Return the loss of each logit against the teacher's, of the shape of both.

    With a constant teacher, ``kl`` and ``soft_label`` have one gradient, ``sigmoid(student) - sigmoid(teacher)``
    (Hinton et al., 2015, at temperature 1); ``kl`` is 0 where both agree.

    Args:
        kind: kl: of two Bernoullis, ``KL(teacher || student)``; soft_label: binary cross-entropy with the teacher's
            probability as label; logit_mse: the squared difference of the logits.
        student: logits.
        teacher: logits.
    """
    if kind == "logit_mse":
        return (student - teacher).square()
    p = torch.sigmoid(teacher)
    if kind == "soft_label":
        return F.binary_cross_entropy_with_logits(student, p, reduction="none")
    # In logarithms: nothing overflows, and equal logits give 0 exactly.
    yes = F.logsigmoid(teacher) - F.logsigmoid(student)
    no = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    return p * yes + torch.sigmoid(-teacher) * no  # not 1 - p, which cancels
