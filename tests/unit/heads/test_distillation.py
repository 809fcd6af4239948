"""What is distilled equals its formula on probabilities, and is finite where these are 0 or 1."""

import pytest
import torch

from torchrec_mtl.heads.distillation import distillation

KINDS = ("kl", "soft_label", "logit_mse")
EXTREME = torch.cartesian_prod(*[torch.tensor([-80.0, -30.0, -1.0, 0.0, 30.0, 80.0])] * 2).T


def logits(count=200, scale=3.0):
    g = torch.Generator().manual_seed(0)
    return (torch.randn(count, generator=g, dtype=torch.float64) * scale).requires_grad_()


def gradients(kind, student, teacher):
    return torch.autograd.grad(distillation(kind, student, teacher).sum(), [student, teacher])


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_equals_the_formula_row_by_row(kind):
    student, teacher = logits(), logits().detach().roll(1)
    q, p = torch.sigmoid(student), torch.sigmoid(teacher)
    expected = {
        "kl": p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log(),
        "soft_label": -p * q.log() - (1 - p) * (1 - q).log(),
        "logit_mse": (student - teacher) ** 2,
    }[kind]
    torch.testing.assert_close(distillation(kind, student, teacher), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_give_finite_values_and_gradients(kind, dtype):
    student, teacher = (z.to(dtype).requires_grad_() for z in EXTREME)
    values = distillation(kind, student, teacher)
    assert torch.isfinite(values).all()
    assert all(torch.isfinite(g).all() for g in gradients(kind, student, teacher))
    assert values.min() > -1e-6
    apart = dict(zip(zip(*EXTREME.tolist(), strict=True), values.tolist(), strict=True))
    assert apart[-80.0, 80.0] == apart[80.0, -80.0] == (6400 * 4 if kind == "logit_mse" else 80)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["kl", "logit_mse"])
def test_where_both_agree_there_is_nothing_to_learn(kind, dtype):
    student = torch.linspace(-80, 80, 1001, dtype=dtype).requires_grad_()
    teacher = student.detach().clone().requires_grad_()
    assert not distillation(kind, student, teacher).any()
    for gradient in gradients(kind, student, teacher):
        assert gradient.abs().max() < torch.finfo(dtype).eps


def test_kl_and_soft_labels_have_one_gradient():
    student, teacher = logits(), logits().detach().roll(1).requires_grad_()
    kl, soft, mse = (gradients(kind, student, teacher)[0] for kind in KINDS)
    torch.testing.assert_close(kl, soft, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(kl, torch.sigmoid(student) - torch.sigmoid(teacher), rtol=1e-10, atol=1e-14)
    assert not torch.allclose(kl, mse)


def test_kl_is_that_of_the_student_from_the_teacher():
    one, other = torch.tensor([3.0]), torch.tensor([-1.0])
    assert distillation("kl", one, other) > 1.2 * distillation("kl", other, one)
