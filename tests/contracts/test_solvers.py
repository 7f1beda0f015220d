"""What the solvers owe for every format, and what GPTQ owes in particular (its specification's own checks)."""

import pytest
import torch

from bitwright.groups import per_column
from bitwright.linalg import Hessian, inverse_cholesky
from bitwright.protocols import ColumnStats, Elastic, Format, QTensor
from bitwright.registry import load, names
from bitwright.solvers.adaquant import Adaquant
from bitwright.solvers.descent import Descent
from bitwright.solvers.gptq import Gptq, gptq
from bitwright.solvers.repaired import Repaired
from bitwright.solvers.rtn import Rtn
from bitwright.turned import Turned


def every_format() -> list[Format]:
    return [fmt for name in names("formats") for fmt in load("formats", name).EXAMPLES]


each = pytest.mark.parametrize("fmt", every_format(), ids=repr)


def problem(rows: int = 24, columns: int = 150, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and a correlated Hessian, float64."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, dtype=torch.float64, generator=g)
    x = torch.randn(400, columns, dtype=torch.float64, generator=g) @ mix
    x[:, 3] *= 6
    return torch.randn(rows, columns, dtype=torch.float64, generator=g), 2 / 400 * x.T @ x


@each
def test_errors_explain_the_difference_for_any_block(fmt: Format) -> None:
    """W - Q = E U and sum E^2 = tr(D H D^T) with the damped H, and the block size changes no code."""
    w, h = problem()
    fmt = fmt.inner if isinstance(fmt, Turned) else fmt
    u, damping = inverse_cholesky(h)
    damped = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    stats = ColumnStats(h.diagonal().float(), u.diagonal().float())
    first = None
    for block in (1, 16, 64, 150):
        codes, params, errors = gptq(w, u, fmt, stats, block)
        d = w - fmt.decode(codes, per_column(params, fmt.group, 150)).double()
        assert (d - errors @ u).abs().max() < 1e-9
        loss = torch.trace(d @ damped @ d.T)
        assert abs(float((errors**2).sum() - loss)) < 1e-9 * float(loss)
        first = codes if first is None else first
        assert (codes != first).double().mean() < 0.005  # where two codes are equally near, rounding decides


@each
def test_diagonal_hessian_gives_rounding(fmt: Format) -> None:
    w = torch.randn(16, 96, generator=torch.Generator().manual_seed(0))
    h = Hessian(torch.diag(torch.linspace(1.0, 1.0, 96)), 100)
    compensated = Gptq(weighted=False).solve(w, fmt, h)
    rounded = Rtn().solve(w, fmt, h)
    assert all(torch.equal(compensated.planes[role], plane) for role, plane in rounded.planes.items())


@each
def test_gptq_beats_rounding_on_correlated_inputs(fmt: Format) -> None:
    w, h = problem()
    hessian = Hessian(h.float(), 400)
    if "Integer(bits_per_code=1" in repr(fmt):
        pytest.skip("min-max at one bit is no quantizer worth comparing")
    solved = Gptq().solve(w.float(), fmt, hessian).dequantize()
    rounded = Rtn().solve(w.float(), fmt, hessian).dequantize()
    assert hessian.error(solved - w.float()) < hessian.error(rounded - w.float())


@each
def test_descent_never_ends_higher_than_it_began(fmt: Format) -> None:
    w, h = problem()
    hessian = Hessian(h.float(), 400)
    damped = Hessian(hessian.matrix + 0.01 * hessian.diagonal.mean() * torch.eye(150), 400)
    errors = []
    for sweeps in (0, 1, 3):
        q = Descent(sweeps=sweeps).solve(w.float(), fmt, hessian)
        assert fmt.flaw(q.planes, q.shape) is None
        errors.append(damped.error(q.dequantize() - w.float()))
    assert errors[2] <= errors[1] * 1.0001
    assert errors[1] < errors[0]


@each
def test_gradients_never_end_higher_than_they_began(fmt: Format) -> None:
    """In the error whose gradient is followed, row by row; of a format in blocks, the product over its prefixes."""
    w, h = problem(rows=16)
    hessian = Hessian(h.float(), 400)
    damped = h.float() + 0.01 * hessian.diagonal.mean() * torch.eye(150)

    def errors(steps: int) -> torch.Tensor:
        q = Adaquant(start=Rtn(), steps=steps, rate=0.03).solve(w.float(), fmt, hessian)
        assert fmt.flaw(q.planes, q.shape) is None
        codes, params = fmt.unpack(q.planes, q.shape)
        spread = per_column(params, fmt.group, 150)
        views = [q.dequantize()]
        if isinstance(fmt, Elastic):
            views = [fmt.decode_prefix(codes, spread, count) for count in range(1, fmt.blocks + 1)]
            assert torch.equal(views[-1], q.dequantize())
        rests = [view - w.float() for view in views]
        return torch.stack([((rest @ damped) * rest).sum(1).log() for rest in rests]).sum(0)

    before, after = errors(0), errors(12)
    if any(len(v) < 16 for v in fmt.unpack(Rtn().solve(w.float(), fmt, None).planes, (16, 150))[1].values()):
        before, after = before.sum(), after.sum()  # rows that share parameters are judged together
    assert bool((after <= before + 1e-4).all())
    assert float(after.sum()) < float(before.sum())


@each
def test_repaired_outputs_are_as_large_as_they_were(fmt: Format) -> None:
    w, h = problem(rows=16)
    hessian = Hessian(h.float(), 400)

    def off(q: QTensor) -> torch.Tensor:
        sizes = [((v @ hessian.matrix) * v).sum(1) for v in (q.dequantize(), w.float())]
        return (sizes[0] / sizes[1] - 1).abs()

    plain, repaired = Gptq().solve(w.float(), fmt, hessian), Repaired(Gptq()).solve(w.float(), fmt, hessian)
    assert torch.equal(fmt.unpack(plain.planes, plain.shape)[0], fmt.unpack(repaired.planes, repaired.shape)[0])
    assert bool((off(repaired) <= off(plain) + 1e-5).all())
    assert float(off(repaired).max()) < 0.01


def test_factor_diagonal_is_the_conditional_curvature() -> None:
    """U_jj^2 is the first entry of the inverse of H[j:, j:]."""
    _, h = problem(columns=20)
    u, damping = inverse_cholesky(h)
    damped = h + damping * h.diagonal().mean() * torch.eye(20, dtype=torch.float64)
    for j in range(20):
        assert abs(float(u[j, j] ** 2 * 1 / torch.linalg.inv(damped[j:, j:])[0, 0]) - 1) < 1e-9


def test_equals_the_textbook_update() -> None:
    """The same codes as optimal brain surgery with explicit inverses, column after column."""
    from bitwright.formats.integer import Integer

    w, h = problem(rows=8, columns=40)
    u, damping = inverse_cholesky(h)
    inverse = torch.linalg.inv(h + damping * h.diagonal().mean() * torch.eye(40, dtype=torch.float64))
    fmt = Integer(3, None)
    stats = ColumnStats.flat(40)
    codes, params, _ = gptq(w, u, fmt, stats)
    rest = w.clone()
    for j in range(40):
        code = fmt.encode(rest[:, j : j + 1], params)
        assert torch.equal(code[:, 0], codes[:, j])
        error = (rest[:, j] - fmt.decode(code, params)[:, 0].double()) / inverse[0, 0]
        rest[:, j:] -= torch.outer(error, inverse[0])
        inverse = (inverse - torch.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]


def test_dead_inputs_get_zero_and_singular_hessians_more_damping(caplog: pytest.LogCaptureFixture) -> None:
    from bitwright.formats.integer import Integer

    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    x[:, 7] = 0
    h = Hessian(2 / 5 * x.T @ x, 5)
    decoded = Gptq().solve(torch.randn(4, 32), Integer(4, 32, "symmetric"), h).dequantize()
    assert torch.isfinite(decoded).all()
    assert torch.equal(decoded[:, 7], torch.zeros(4))
    upper, used = inverse_cholesky(torch.ones(64, 64) * 1e6, damping=1e-18)
    assert torch.isfinite(upper).all()
    assert used > 1e-18
    assert "damping raised" in caplog.text


def test_a_grid_that_holds_the_weights_loses_nothing() -> None:
    from bitwright.formats.integer import Integer

    w = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(0)).float()
    w[:, 0], w[:, 1] = 0, 15
    _, h = problem(columns=64)
    assert torch.equal(Gptq().solve(w, Integer(4, 64), Hessian(h.float(), 400)).dequantize(), w)
