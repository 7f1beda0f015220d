"""The compiled divergence and its gradient: the same bits on every level, torch's values, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

_core = pytest.importorskip("bitwright._core", reason="bitwright was installed without a compiler")
TYPES = [torch.float32, torch.bfloat16]


def logits(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """More columns than one stretch, and no multiple of the lanes."""
    generator = torch.Generator().manual_seed(3)
    student = 5 * torch.randn(4, 2571, generator=generator)
    return student.to(dtype), (student + torch.randn(4, 2571, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("ambiguity", [0.0, 1.5])
def test_every_level_gives_the_bits_of_the_portable_one(isa: str, dtype: torch.dtype, ambiguity: float) -> None:
    student, parent = logits(dtype)
    found, gradient = _core.follow(student, parent, ambiguity, 0.5), parent
    _core.set_isa("portable")
    student, parent = logits(dtype)
    assert _core.follow(student, parent, ambiguity, 0.5) == found
    assert torch.equal(gradient, parent)


def test_is_the_divergence(isa: str) -> None:
    student, parent = logits(torch.float32)
    expected = F.kl_div(student.log_softmax(1), parent.log_softmax(1), log_target=True, reduction="batchmean")
    slope = (student.softmax(1) - parent.softmax(1)) / len(student)
    assert _core.follow(student, parent, 0.0, 1.0) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(parent, slope, atol=1e-8)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_not_hidden(isa: str, dtype: torch.dtype, wrong: float) -> None:
    """Training stops at a loss that is not finite."""
    student, parent = logits(dtype)
    student[1, 77] = wrong
    assert not _core.follow(student, parent, 0.0, 1.0) < float("inf")


def test_refusals() -> None:
    student, parent = logits(torch.float32)
    with pytest.raises(TypeError, match="float32 or bfloat16"):
        _core.follow(student.double(), parent.double(), 0.0, 1.0)
    with pytest.raises(TypeError, match="float32 or bfloat16"):
        _core.follow(student, parent.bfloat16(), 0.0, 1.0)
    with pytest.raises(ValueError, match="another shape"):
        _core.follow(student, parent[:2], 0.0, 1.0)
    with pytest.raises(ValueError, match="there is nothing"):
        _core.follow(student[:0], parent[:0], 0.0, 1.0)
