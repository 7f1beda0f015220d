"""--bits and --set: what recipes make of them."""

from __future__ import annotations

import pytest

from bitwright.engine.settings import choose, parse
from bitwright.errors import BadField, BadInput, Refused, TooFewBits, UnknownName
from bitwright.formats.integer import Integer
from bitwright.formats.mixed import Mixed
from bitwright.formats.ternary import Ternary
from bitwright.partitions.salience import Salience
from bitwright.partitions.slots import Slots
from bitwright.recipes._bits import stored_bits
from bitwright.registry import load, names

SHAPES = [(576, 576), (1536, 576), (576, 1536), (192, 576)]


@pytest.mark.parametrize("name", names("recipes"))
@pytest.mark.parametrize("bits", [2.7, 3.0, 3.5, 4.4, 5.0])
def test_bits_are_an_upper_bound_that_is_used(name: str, bits: float) -> None:
    try:
        recipe, _ = choose(name, {}, bits, SHAPES)
    except Refused:
        with pytest.raises(Refused, match="at most"):
            choose(name, {}, bits, SHAPES)
        return
    # Between 4 and 5.33 bits there is no word, and blocks are whole.
    gap = {"trellis": 1.0, "qtip": 1.0, "bit-stack": 1.08, "double-rounding": 1.01}.get(name, 0.5)
    assert bits - gap <= stored_bits(recipe.format, SHAPES) <= bits
    if name == "pb-llm":
        assert stored_bits(recipe.format, SHAPES) > bits - 0.01


@pytest.mark.parametrize("name", names("recipes"))
def test_impossible_bits(name: str) -> None:
    with pytest.raises(TooFewBits, match="at least"):
        choose(name, {}, 0.5, SHAPES)
    with pytest.raises(Refused, match="at most"):
        choose(name, {}, 20.0, SHAPES)


@pytest.mark.parametrize("name", names("recipes"))
def test_docstring_tells_the_stored_bits(name: str) -> None:
    doc = load("recipes", name).__doc__
    assert doc is not None
    assert "Stored bits a weight" in doc


def test_pb_llm_shares() -> None:
    """30 % salient at 8 bits is about 4.5 stored bits, at 4 bits about 3.3; slots have a share of their own."""
    recipe, caution = choose("pb-llm", {}, None, SHAPES)
    assert stored_bits(recipe.format, SHAPES) == pytest.approx(4.5, abs=0.03)
    assert caution is None
    recipe, _ = choose("pb-llm", {"format.salient_bits": "4"}, 3.3, SHAPES)
    assert isinstance(recipe.format, Mixed)
    assert isinstance(recipe.format.by, Salience)
    assert recipe.format.by.share == pytest.approx(0.3, abs=0.01)
    _, caution = choose("pb-llm", {"format.by.share": "0.1"}, None, SHAPES)
    assert caution is not None
    assert any(letter.isdigit() for letter in caution)
    with pytest.raises(Refused, match="fixed share"):
        choose("pb-llm", {"format.by": '{"kind": "slots"}', "format.where": "nm"}, 3.0, SHAPES)


def test_settings_reach_every_part_and_are_checked_together() -> None:
    recipe, _ = choose("pb-llm", {"format.by": '{"kind": "slots", "block": 128}', "format.where": "nm"}, None, SHAPES)
    assert recipe.format == Mixed(by=Slots(128), where="nm")
    recipe, _ = choose("rtn", {"format": '{"kind": "ternary", "packing": "base3", "group": 80}'}, None, SHAPES)
    assert recipe.format == Ternary(80, "base3")
    recipe, _ = choose("gptq", {"rules": '[["*.v_proj", {"kind": "integer", "bits_per_code": 6}]]'}, None, SHAPES)
    assert recipe.format_of("model.layers.0.self_attn.v_proj") == Integer(6)
    recipe, _ = choose("gptq", {"solver.damping": "0.05", "embedding": "none"}, None, SHAPES)
    assert recipe.embedding is None
    assert recipe.solver == type(recipe.solver)(damping=0.05)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("solver=3", BadField),
        ("keep=lm_head", BadField),
        ("format.group=fifty", BadField),
        ("format.group=33", BadField),
        ("format.grup=64", UnknownName),
        ("formt.group=64", UnknownName),
        ("name=mine", UnknownName),
        ("format.group.size=3", BadInput),
        ("nothing", BadInput),
    ],
)
def test_wrong_settings(setting: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        choose("gptq", parse([setting]), None, SHAPES)
