"""Scales that every token mixes: what the specification of BinaryMoS asks beyond the contracts."""

from dataclasses import replace

import pytest
import torch

from bitwright.errors import BadField
from bitwright.formats.mixture import Mixture
from bitwright.formats.residual import Residual
from bitwright.mixing import Mixer
from bitwright.protocols import Adaptive, Planes
from bitwright.runtime.linear import QLinear
from bitwright.solvers.rtn import Rtn

SHAPE = (40, 96)
FORMAT = Mixture()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def parted() -> Planes:
    """A weight whose experts differ, with a router that has opinions."""
    planes = Rtn().solve(normal(*SHAPE), FORMAT, None).planes
    router, inputs = normal(3, SHAPE[1], seed=1).half(), (1 + 0.3 * normal(3, SHAPE[1], seed=2)).half()
    outputs = (1 + 0.3 * normal(*planes["outputs"].shape, seed=3)).half()
    return planes | {"router": router, "inputs": inputs, "outputs": outputs}


def layer(planes: Planes, fmt: Mixture | Residual = FORMAT) -> QLinear:
    made = QLinear(fmt, SHAPE)
    made.fill(planes)
    made.activations = "float"
    return made


def test_a_token_gets_the_product_of_the_paper(parted: Planes) -> None:
    """y = ((x * G S_in) sign(W)^T) * G S_out with G = softmax(x W_R), section 3.2, for whole pairs of scales."""
    codes, params = FORMAT.unpack(parted, SHAPE)
    mixer = FORMAT.mixer(params)
    one = torch.ones(1, 1)
    s_in = torch.cat([one.expand(1, SHAPE[1]), mixer.inputs]) * params["column"]
    s_out = torch.cat([one.expand(1, SHAPE[0]), mixer.outputs]) * params["scale"].t() / 2
    x = normal(7, SHAPE[1], seed=4)
    gates = torch.nn.functional.pad(x @ mixer.router.t(), (1, 0)).softmax(1)
    expected = ((x * (gates @ s_in)) @ (2.0 * codes - 1).t()) * (gates @ s_out)
    assert torch.allclose(layer(parted)(x), expected, atol=1e-4)
    assert not torch.allclose(layer(parted)(x), x @ FORMAT.decode(codes, params).t(), atol=1e-1)


def test_equal_experts_are_one_for_any_router() -> None:
    planes = Rtn().solve(normal(*SHAPE), FORMAT, None).planes
    planes["router"] = normal(3, SHAPE[1], seed=1).half() * 10
    low = Rtn().solve(normal(*SHAPE), FORMAT.low, None).planes
    x = normal(7, SHAPE[1], seed=4)
    for activations in ("float", "int8"):
        mixed, plain = layer(planes), layer(low, FORMAT.low)
        mixed.activations = plain.activations = activations  # type: ignore[assignment]
        assert torch.equal(mixed(x), plain(x))


def test_the_order_of_experts_and_other_tokens_do_not_matter(parted: Planes) -> None:
    x, turned = normal(7, SHAPE[1], seed=4), [2, 0, 1]
    other = parted | {"router": parted["router"][turned], "inputs": parted["inputs"][turned]}
    other["outputs"] = parted["outputs"][:, turned]
    assert torch.allclose(layer(parted)(x), layer(other)(x), atol=1e-4)
    assert torch.allclose(layer(parted)(x)[3], layer(parted)(x[3:4])[0], atol=1e-4)


def test_factors_take_their_gradients() -> None:
    tensors = [normal(3, n, seed=n).requires_grad_() for n in (8, 8, 5)]
    before, behind = Mixer(*tensors).factors(normal(2, 8, seed=9))
    assert all(bool(g.abs().sum() > 0) for g in torch.autograd.grad(before.sum() + behind.sum(), tensors))


def test_bits_are_those_of_the_paper_but_for_a_router_vector() -> None:
    rows, columns, e = 4096, 4096, 4
    paper = 1 + 16 * (e * (rows + columns) + e * columns) / (rows * columns)
    found = FORMAT.bits((rows, columns)).total / (rows * columns)
    assert found == pytest.approx(paper - 16 / rows, abs=1e-6)


def test_what_is_adaptive() -> None:
    assert isinstance(FORMAT, Adaptive)
    assert not isinstance(FORMAT.low, Adaptive)
    with pytest.raises(BadField, match="give 2 to"):
        replace(FORMAT, experts=1)
