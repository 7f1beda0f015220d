import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bitwright.errors import BadInput, Refused
from bitwright.evaluate.metrics import Totals
from bitwright.evaluate.scores import TokenScores
from bitwright.report.tables import Row

pytest.importorskip("matplotlib")
from bitwright.report.charts import frontiers, quality_against_bytes, reliability

ROWS = [Row("float", 538_000_000, 32, 19.9), Row("small", 70_000_000, 2, 90.0), Row("worse", 99_000_000, 4, 95.0)]


def totals() -> Totals:
    rng = np.random.default_rng(0)
    confidence = rng.random(6000).astype(np.float32)
    zero = np.zeros_like(confidence)
    correct = rng.random(6000) < confidence**1.5
    return Totals.of(TokenScores(zero, confidence, zero, zero, zero.astype(np.int32), correct, None))


def words(path: Path) -> str:
    """The comments in which matplotlib keeps each text of an SVG."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    tree = ElementTree.parse(path, parser)
    return " ".join(node.text or "" for node in tree.iter() if node.tag is ElementTree.Comment)


def test_reliability_names_models_and_their_scores(tmp_path: Path) -> None:
    reliability({"float": totals(), "q": totals()}, tmp_path / "r.svg", "by this protocol")
    shown = words(tmp_path / "r.svg")
    assert f"q: balance {totals().balance:+.3f}" in shown
    assert "ECE" in shown
    assert "by this protocol" in shown


def test_quality_names_every_model(tmp_path: Path) -> None:
    quality_against_bytes([*ROWS, Row("unmeasured")], tmp_path / "sub" / "q.svg", reference="float")
    shown = words(tmp_path / "sub" / "q.svg")
    assert all(row.name in shown for row in ROWS)
    assert "unmeasured" not in shown


def test_frontiers_name_every_curve_and_loss(tmp_path: Path) -> None:
    curve = [(45.0, 30.0), (38.0, 60.0)]
    frontiers({"perplexity": {"a": curve, "b": curve[:1]}, "KL": {"a": curve}}, tmp_path / "f.svg", "note")
    shown = words(tmp_path / "f.svg")
    assert all(name in shown for name in ("perplexity", "KL", "a", "b", "note", "file size, MB"))


def test_a_png_is_a_png(tmp_path: Path) -> None:
    quality_against_bytes(ROWS, tmp_path / "q.png")
    assert (tmp_path / "q.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"\.png or \.svg"):
        quality_against_bytes(ROWS, tmp_path / "q.pdf")
    with pytest.raises(BadInput, match="nothing to plot"):
        quality_against_bytes([Row("a")], tmp_path / "q.png")
    with pytest.raises(BadInput, match="nothing to plot"):
        frontiers({"KL": {"a": []}}, tmp_path / "q.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Refused, match="pip install bitwright"):
        reliability({"a": totals()}, tmp_path / "r.png")
