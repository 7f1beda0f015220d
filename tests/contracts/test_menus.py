"""Every recipe that spreads bits over tensors offers choices that can be told apart and stored."""

from __future__ import annotations

import pytest

from bitwright.protocols import Format
from bitwright.recipe import Menu
from bitwright.registry import load, names
from bitwright.sensitivity.scores import SCORES
from bitwright.sensitivity.table import key
from bitwright.spec import from_spec, label, to_spec

MENUS = {name: load("recipes", name).MENU for name in names("recipes") if hasattr(load("recipes", name), "MENU")}
SHAPE = (576, 576)


@pytest.mark.parametrize("name", MENUS)
def test_formats_have_names_of_their_own_and_come_back(name: str) -> None:
    menu: Menu = MENUS[name]
    for formats in (menu.formats, menu.tables):
        assert len({label(fmt) for fmt in formats}) == len({key(fmt) for fmt in formats}) == len(formats)
        for fmt in formats:
            assert isinstance(fmt, Format)
            assert from_spec(to_spec(fmt)) == fmt
            assert fmt.bits(SHAPE).total % 8 == 0
    assert menu.score in SCORES
    assert menu.reference is None or menu.reference in menu.formats
    assert len({fmt.bits(SHAPE).total for fmt in menu.formats}) > 1


@pytest.mark.parametrize("name", MENUS)
def test_tables_are_stored_row_by_row(name: str) -> None:
    for fmt in MENUS[name].tables:
        small, large = fmt.planes((64, 640)), fmt.planes((128, 640))
        assert all(large[role].shape[0] == 2 * small[role].shape[0] for role in small)
