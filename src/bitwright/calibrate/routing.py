"""How routers choose: how much less than the first choice of a token its second one counts."""

from __future__ import annotations

from torch import Tensor

from bitwright.calibrate.observe import Run, inputs


def second_choices(run: Run, router: Tensor, batch: Tensor) -> Tensor:
    """Probability of the second expert over that of the first, float32 [tokens], of a router [E, D] with softmax."""
    logits = (inputs(run, router, batch).flatten(0, -2) @ router.t()).float()
    best = logits.topk(2, dim=-1).values
    return (best[:, 1] - best[:, 0]).exp()
