"""Scales of their own for salient columns: what the specification of BiLLM asks beyond the contracts."""

import pytest
import torch

from bitwright.errors import BadField
from bitwright.formats.residual import Residual
from bitwright.formats.zoned import Zoned
from bitwright.groups import per_column
from bitwright.linalg import Hessian
from bitwright.protocols import Format
from bitwright.solvers.gptq import Gptq
from bitwright.solvers.rtn import Rtn

SHAPE = (48, 256)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven() -> torch.Tensor:
    """Weights whose columns 5, 70 and 200 are ten times as large."""
    w = normal(*SHAPE)
    w[:, [5, 70, 200]] *= 10
    return w


def error(w: torch.Tensor, fmt: Format) -> float:
    rest = Rtn().solve(w, fmt, None).dequantize() - w
    return float(rest.square().sum() / w.square().sum())


def test_the_large_columns_are_the_salient_ones() -> None:
    planes = Rtn().solve(uneven(), Zoned(), None).planes
    chosen = (planes["chosen"][:, None] >> torch.arange(8, dtype=torch.uint8) & 1).view(-1)
    assert {5, 70, 200} <= set(chosen.nonzero().view(-1).tolist())
    assert int(chosen.sum()) < 10


def test_salience_is_that_of_the_hessian() -> None:
    """Equal weights, unequal inputs: the column of the loud input is apart if that lowers the weighed error."""
    w = normal(*SHAPE)
    w[:, 17] *= 1.5
    loud = torch.ones(SHAPE[1])
    loud[17] = 1e4
    planes = Gptq().solve(w, Zoned(Residual(2, None, "split")), Hessian(torch.diag(loud), 1000)).planes
    assert int(planes["chosen"][2]) & 2


def test_zones_pay_where_columns_differ() -> None:
    for low, salient in ((Residual(2, 128, "split"), "greedy"), (Residual(2, 128), "alternating")):
        zoned = Zoned(low, salient)  # type: ignore[arg-type]
        assert error(uneven(), zoned) < 0.7 * error(uneven(), low)
    assert error(normal(*SHAPE), Zoned()) <= error(normal(*SHAPE), Residual(2, 128, "split")) + 1e-6


def test_a_column_has_the_levels_of_its_zone() -> None:
    q = Rtn().solve(uneven(), Zoned(Residual(2, None)), None)
    codes, params = q.format.unpack(q.planes, SHAPE)
    whole = per_column(params, None, SHAPE[1])
    decoded, chosen = q.format.decode(codes, whole), params["chosen"][0] > 0
    for row in range(SHAPE[0]):
        for zone, name in ((~chosen, ""), (chosen, "salient_")):
            a, b = (float(params[f"{name}{scale}"][row, 0]) / 2 for scale in ("scale", "scale1"))
            levels = torch.tensor([a + b, a - b, b - a, -a - b])
            assert float((decoded[row, zone, None] - levels).abs().amin(1).max()) < 1e-6


@pytest.mark.parametrize(
    "wrong",
    [{"low": Residual(2, 128, columns="own")}, {"low": Residual(2, 64, values="bit"), "salient": "alternating"}],
)
def test_settings_that_do_not_fit(wrong: dict[str, object]) -> None:
    with pytest.raises(BadField):
        Zoned(**wrong)  # type: ignore[arg-type]
