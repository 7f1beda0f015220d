"""Planes of the right shape but with wrong values are found out before a kernel follows them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.formats.binary import Binary
from bitwright.formats.mixed import Mixed
from bitwright.formats.ternary import Ternary
from bitwright.partitions.salience import Salience
from bitwright.partitions.slots import Slots
from bitwright.protocols import Format
from bitwright.registry import load, names
from bitwright.runtime.reference import integer_matmul
from bitwright.solvers.rtn import Rtn

SHAPE = (21, 150)


def every_format() -> list[Format]:
    return [fmt for name in names("formats") for fmt in load("formats", name).EXAMPLES]


def planes_of(fmt: Format) -> dict[str, torch.Tensor]:
    w = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return Rtn().solve(w, fmt, None).planes


@pytest.mark.parametrize("fmt", every_format(), ids=repr)
def test_what_we_write_has_no_flaw(fmt: Format) -> None:
    assert fmt.flaw(planes_of(fmt), SHAPE) is None


@pytest.mark.parametrize("fmt", every_format(), ids=repr)
@given(role=st.integers(0, 9), place=st.integers(0, 10**6), flip=st.integers(1, 255))
@settings(max_examples=40, deadline=None)
def test_any_changed_byte_is_found_or_harmless(fmt: Format, role: int, place: int, flip: int) -> None:
    planes = planes_of(fmt)
    name = sorted(planes)[role % len(planes)]
    planes[name] = planes[name].clone()
    raw = planes[name].view(-1).view(torch.uint8)
    raw[place % len(raw)] ^= flip
    if fmt.flaw(planes, SHAPE) is None:
        x = torch.randn(2, SHAPE[1], generator=torch.Generator().manual_seed(1))
        group = fmt.terms(planes, SHAPE)[0].activation_group
        assert integer_matmul(x, fmt.operands(planes, SHAPE), group).isfinite().all()


def mixed(where: str) -> Mixed:
    by = Slots(64, "magnitude") if where == "nm" else Salience(0.1, "magnitude")
    return Mixed(Binary(), by, where=where)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "role", "place", "value", "told"),
    [
        ("bitmap", "starts", -1, 10**6, "counts"),
        ("bitmap", "starts", 1, -5, "counts"),
        ("offsets", "offsets", -1, 255, "outside"),
        ("offsets", "counts", 0, 255, "counts"),
        ("nm", "index", 0, 200, "outside"),
    ],
)
def test_places_out_of_bounds(where: str, role: str, place: int, value: int, told: str) -> None:
    fmt = mixed(where)
    planes = planes_of(fmt)
    planes[role] = planes[role].clone()
    planes[role].view(-1)[place] = value
    assert told in str(fmt.flaw(planes, SHAPE))


def test_scales_and_digits() -> None:
    planes = planes_of(Ternary(80, "base3"))
    planes["weight"] = planes["weight"].clone()
    planes["weight"][0, 0, 0] = 243
    assert "ternary" in str(Ternary(80, "base3").flaw(planes, SHAPE))
    planes = planes_of(Binary())
    planes["scales"][0, 0, 0] = float("inf")
    assert "not finite" in str(Binary().flaw(planes, SHAPE))
