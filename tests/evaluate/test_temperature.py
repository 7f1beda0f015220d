import pytest
import torch

from bitwright.errors import WorkFailed
from bitwright.evaluate.metrics import Totals, calibration_error
from bitwright.evaluate.scores import score_
from bitwright.evaluate.temperature import fit_temperature


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.5, 6.0])
def test_a_scaled_truth_is_found_and_repaired(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(30_000, 20, generator=generator) * 2
    targets = torch.multinomial(torch.softmax(z, -1), 1, generator=generator)[:, 0]
    temperature = fit_temperature(z * scale, targets)
    assert temperature == pytest.approx(scale, rel=0.02)
    repaired, truth, scaled = (
        Totals.of(score_(logits, targets)) for logits in (z * scale / temperature, z.clone(), z * scale)
    )
    assert calibration_error(repaired.equal_width()) == pytest.approx(calibration_error(truth.equal_width()), abs=5e-3)
    assert repaired.accuracy == scaled.accuracy


def test_without_an_optimum_it_fails() -> None:
    with pytest.raises(WorkFailed, match="not finite"):
        fit_temperature(torch.eye(5) * 3, torch.arange(5))
