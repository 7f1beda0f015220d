import json
from io import StringIO

import pytest
from rich.console import Console

from bitwright.report.tables import Row, markdown, number, terminal

ROWS = [
    Row("float", 538_090_408, 32.0, 19.9209, top1_agreement=None),
    Row("a|b", 85_100_000, 3.5, 81.0, 2.0, 1.2, 8.0, 0.513),
    Row("broken", 74_000_000, 2.8, 2.4e6, 1e5, 12.0, 20.0, 0.01),
]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(19.9209, "19.92"), (468.0, "468.0"), (3011.4, "3011"), (98983.2, "98983"), (2.4e6, "2.4e+06")],
        *[(0.3, "0.300"), (0.01234, "0.0123"), (3e-7, "3.0e-07"), (0.0, "0"), (None, ""), (float("inf"), "inf")],
    ],
)
def test_numbers_have_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_markdown_has_the_numbers_and_the_protocol() -> None:
    lines = markdown(ROWS, "by this protocol").splitlines()
    assert lines[0] == "| model | file MB | stored bits | perplexity | KL mean | KL p99 | top-1 |"
    assert lines[2] == "| float | 538.1 | 32.00 | 19.92 | - | - | - |"
    assert lines[3] == "| a\\|b | 85.1 | 3.50 | 81.00 ± 2.00 | 1.200 | 8.000 | 51.3% |"
    assert "| 2.4e+06 |" in lines[4]
    assert lines[-1] == "by this protocol"


def test_the_terminal_shows_the_same_cells() -> None:
    console = Console(width=120, record=True, file=StringIO())
    console.print(terminal(ROWS, "by this protocol"))
    shown = console.export_text()
    for cell in ("538.1", "81.00 ± 2.00", "51.3%", "by this protocol"):
        assert cell in shown
    assert "tokens/s" not in shown


def test_json_has_stable_keys() -> None:
    assert set(ROWS[0].to_json()) == {
        *("name", "file_bytes", "stored_bits_per_weight", "perplexity", "perplexity_difference_se"),
        *("kl_mean", "kl_p99", "top1_agreement", "tokens_per_second"),
    }
    assert json.loads(json.dumps(ROWS[1].to_json()))["kl_p99"] == 8.0
