"""What a recipe's training adds: other losses, weights that stay, scales that follow from weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bitwright.errors import BadField
from bitwright.formats.binary import Binary
from bitwright.formats.integer import Integer
from bitwright.formats.mixed import Mixed
from bitwright.latent import TunedWeight
from bitwright.learning import Learning
from bitwright.partitions.salience import Salience
from bitwright.recipes.pb_llm import TRAINING as PB_LLM
from bitwright.solvers.rtn import Rtn
from bitwright.tune.loss import divergence, objective

SHAPE = (24, 200)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs(seed: int, positions: int = 6, states: int = 3) -> SimpleNamespace:
    hidden = tuple(logits(seed + i, 1, positions, 5) for i in range(1, states + 1))
    return SimpleNamespace(logits=logits(seed, 1, positions, 17), hidden_states=hidden)


def test_deviation_aware_distillation_by_hand() -> None:
    """Golden: weights from normalised entropies, detached; the gradient is (1 + lambda w) (S - T) / n."""
    s, t = 3 * logits(0, 5, 11), 3 * logits(1, 5, 11)
    student = s.double().requires_grad_()
    p, log_p, log_q = t.double().softmax(1), t.double().log_softmax(1), student.log_softmax(1)
    entropy_t = -(p * log_p).sum(1) / torch.log(torch.tensor(11.0))
    entropy_s = -(log_q.exp() * log_q).sum(1) / torch.log(torch.tensor(11.0))
    w = 1 + 0.7 * (entropy_t * entropy_s).detach() ** 1.5
    cross = -(p * log_q).sum(1)  # the paper's; the teacher's entropy in it has no gradient
    wanted = (w * (cross + (p * log_p).sum(1))).mean()
    (gradient,) = torch.autograd.grad((w * cross).mean(), student)
    here = s.clone().requires_grad_()
    found = divergence(here, t.clone(), 0.7, 1.5)
    assert torch.allclose(found.double(), wanted, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(found, here)[0].double(), gradient, atol=1e-6)


def test_deviation_aware_distillation_at_its_ends() -> None:
    s, t = logits(0, 5, 11), logits(1, 5, 11)
    plain = divergence(s, t.clone())
    assert torch.allclose(divergence(s, t.clone(), 2.0, 0.0), 3 * plain)  # sharpness 0: all positions alike
    certain = 1e4 * F.one_hot(torch.arange(5), 11).float()
    assert torch.equal(divergence(s, certain.clone(), 2.0), divergence(s, certain.clone()))
    assert bool(divergence(certain, certain.clone(), 2.0).isfinite())


def test_losses_are_summed_with_their_weights() -> None:
    ids = torch.arange(6)
    student, teacher = outputs(0), outputs(50)

    def loss(**weights: float) -> torch.Tensor:
        fresh = SimpleNamespace(logits=teacher.logits.clone(), hidden_states=teacher.hidden_states)
        return objective(student, fresh, ids, Learning(**{"divergence": 0.0} | weights))

    next_token = -student.logits[0].log_softmax(1)[torch.arange(5), ids[1:]].mean()
    assert torch.allclose(loss(entropy=1.0), next_token)
    pairs = zip(student.hidden_states[1:], teacher.hidden_states[1:], strict=True)
    cosines = torch.stack([F.cosine_similarity(a[0], b[0]) for a, b in pairs])
    assert torch.allclose(loss(hidden=1.0), (2 - 2 * cosines).sum(0).mean(), atol=1e-5)  # |u - v|^2 of unit vectors
    both = 0.5 * loss(entropy=1.0) + 2 * loss(hidden=1.0) + loss(divergence=1.0)
    assert torch.allclose(loss(entropy=0.5, hidden=2.0, divergence=1.0), both)
    same = outputs(0)
    twin = SimpleNamespace(logits=same.logits.clone(), hidden_states=same.hidden_states)
    assert float(objective(same, twin, ids, Learning(hidden=1.0))) < 1e-6


@pytest.fixture
def salient() -> TunedWeight:
    w = logits(0, *SHAPE)
    fmt = Mixed(Binary(64), Salience(0.1, "magnitude"), 8)
    return TunedWeight(Rtn().solve(w, fmt, None), w, PB_LLM)


def test_frozen_salient_weights_do_not_move(salient: TunedWeight) -> None:
    mask = salient.fixed["mask"] > 0
    before, latent = salient.value(), salient.moved.tensors["latent"].clone()
    ranges = {name: salient.fixed[name].clone() for name in ("salient_scale", "salient_min")}
    for seed in range(20):
        salient.update([logits(seed + 1, *SHAPE)], 1.0)
        salient.encode()
    assert torch.equal(salient.moved.tensors["latent"][mask], latent[mask])
    assert not torch.equal(salient.moved.tensors["latent"][~mask], latent[~mask])
    assert all(torch.equal(salient.fixed[name], old) for name, old in ranges.items())
    # They are stored on top of a binary value whose scale follows the others: one step of their own grid at most.
    moved = ((salient.value() - before).abs() / ranges["salient_scale"])[mask]
    assert float(moved.max()) <= 1.0
    assert not torch.equal(salient.value()[~mask], before[~mask])


def test_analytic_scales_are_least_squares_of_the_latent_weights(salient: TunedWeight) -> None:
    """Mean of |w - mean| over what is not salient, in each row and group (PB-LLM, section 3.3)."""
    for seed in range(3):
        salient.update([logits(seed + 1, *SHAPE)], 5.0)
    salient.encode()
    latent, rest = salient.moved.tensors["latent"], salient.fixed["mask"] == 0
    for group, columns in enumerate((slice(0, 64), slice(64, 128), slice(128, 192), slice(192, 200))):
        w, counted = latent[:, columns], rest[:, columns]
        mean = (w * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True)
        a = ((w - mean).abs() * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True)
        wanted = torch.where(w >= mean, mean + a, mean - a)
        found = salient.value()[:, columns]
        sure = counted & ((w - mean).abs() > 5e-3)  # f16 scales may move the border between the two values
        assert torch.allclose(found[sure], wanted[sure], rtol=2e-3, atol=2e-3), group


def test_a_state_holds_analytic_scales(salient: TunedWeight) -> None:
    w = logits(0, *SHAPE)
    other = TunedWeight(Rtn().solve(w, salient.format, None), w, PB_LLM)
    salient.update([logits(1, *SHAPE)], 5.0)
    salient.encode()
    other.restore({key: value.clone() for key, value in salient.state().items()})
    assert torch.equal(other.value(), salient.value())
    assert all(torch.equal(plane, other.planes()[role]) for role, plane in salient.planes().items())


def test_weights_of_more_bits_move_less() -> None:
    w = logits(0, *SHAPE)

    def moved(bits: int, per_bit: float) -> tuple[float, float]:
        q = Rtn().solve(w, Integer(bits, None), None)
        tuned = TunedWeight(q, None, Learning(rate=0.01, parameter_rate=0.02, per_bit=per_bit))
        before = {name: tensor.clone() for name, tensor in tuned.moved.tensors.items()}
        tuned.moved.step({name: torch.ones_like(tensor) for name, tensor in before.items()}, 1.0)
        latent, scale = (tuned.moved.tensors[name] - before[name] for name in ("latent", "scale"))
        rms = [float(before[name].square().mean().sqrt()) for name in ("latent", "scale")]
        return float(latent.abs().mean()) / rms[0], float(scale.abs().mean()) / rms[1]

    stored = 32 / SHAPE[1]  # scales and mins of a row, in bits a weight
    for bits, more in ((1, 0.0), (2, stored), (4, 2 + stored)):
        assert moved(bits, 0.0) == pytest.approx((0.01, 0.02), rel=1e-3)
        share = 2.0 ** (-1.5 * more)
        assert moved(bits, 1.5) == pytest.approx((0.01 * share, 0.02 * share), rel=1e-3)
    for wrong in (-1.0, 5.0, float("nan")):
        with pytest.raises(BadField, match="per_bit"):
            Learning(per_bit=wrong)
