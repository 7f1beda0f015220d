"""Published choices come out of the allocator: HAWQ-V3 (arXiv 2011.10680) and MC-MoE (arXiv 2410.06270)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitwright.allocate.choose import allocate
from bitwright.allocate.problem import Budget, Count, Option, Side, Unit
from bitwright.sensitivity.experts import significance

# The 19 inner layers of ResNet18, from the notebook of the authors: mean trace; squared perturbation at 8 and 4 bits;
# weights; millions of multiply-adds; milliseconds at 4 and 8 bits.
RESNET18 = """
0.06857826 0.0235  6.7430   36864 115.605504 0.21094404 0.36189111
0.03162379 0.0125  3.9691   36864 115.605504 0.21092674 0.36211718
0.03298575 0.0102  3.3281   36864 115.605504 0.21104113 0.31141909
0.01205663 0.0082  2.6796   36864 115.605504 0.21086851 0.30454471
0.02222431 0.0145  4.7277   73728  57.802752 0.13642465 0.19184896
0.00596336 0.0344 10.5966  147456 115.605504 0.19167506 0.38948934
0.06931772 0.0023  0.6827    8192   6.422528 0.02532183 0.03341690
0.00807129 0.0287  9.0942  147456 115.605504 0.19148203 0.38904905
0.00372905 0.0148  4.8857  147456 115.605504 0.19142914 0.38928590
0.00530698 0.0333 10.7599  294912  57.802752 0.11395316 0.19134735
0.00209011 0.0682 21.7546  589824 115.605504 0.20556011 0.34307431
0.00737569 0.0027  0.8603   32768   6.422528 0.01917474 0.02802354
0.00210454 0.0448 14.5324  589824 115.605504 0.20566918 0.34313329
0.00151197 0.0336 10.9651  589824 115.605504 0.20566509 0.34310756
0.00158041 0.0576 18.7706 1179648  57.802752 0.13185102 0.21117103
0.00078146 0.1130 36.4044 2359296 115.605504 0.22287786 0.37376585
0.00451841 0.0102  3.1572  131072   6.422528 0.01790088 0.02896843
0.00098745 0.0947 29.6994 2359296 115.605504 0.22304611 0.37398187
0.00072944 0.0532 17.4016 2359296 115.605504 0.22286099 0.37405185
"""
LAYERS = np.array([[float(x) for x in line.split()] for line in RESNET18.strip().splitlines()])
TIES = Side(ties=(("04", "06"), ("09", "11"), ("14", "16")))  # a shortcut and the convolution beside it


def layer(i: int) -> Unit:
    trace, eight, four, weights, macs, ms4, ms8 = LAYERS[i]
    return Unit(
        f"{i:02}",
        tuple(
            Option(
                str(bits),
                trace * perturbation,
                {"size": int(weights) * bits, "bops": round(macs * 1e6) * bits * bits, "latency": round(ms * 1e8)},
            )
            for bits, perturbation, ms in ((4, four, ms4), (8, eight, ms8))
        ),
    )


@pytest.mark.parametrize(
    ("resource", "share", "published"),
    [
        ("size", 0.75, "8888888888888488884"),
        ("size", 0.5, "8888888888888884844"),
        ("size", 0.25, "8888888888888844444"),
        ("bops", 0.75, "8888888848888484884"),
        ("bops", 0.5, "8884888848884444444"),
        ("bops", 0.25, "8884848444444444444"),
        ("latency", 0.75, "8888888848888484884"),
        ("latency", 0.5, "8888848848884484844"),
        ("latency", 0.25, "8884848444444444444"),
    ],
)
def test_resnet18_of_hawq_v3(resource: str, share: float, published: str) -> None:
    units = [layer(i) for i in range(19)]
    low, high = (sum(unit.options[k].costs[resource] for unit in units) for k in (0, 1))
    found = allocate(units, [Budget(resource, int(low + share * (high - low)))], TIES)
    assert "".join(found.choice[f"{i:02}"] for i in range(19)) == published


# Block 5 of Mixtral-8x7B: tokens routed, summed routing weight, output error at 1, 2 and 3 bits.
MIXTRAL = """
61779 19302.3 3079.0 2407.5 972.6
68147 19972.1 2966.8 2355.5 947.6
62765 17198.7 2723.8 2190.3 886.9
66210 19976.7 2762.6 2245.7 907.0
64575 18671.5 2898.1 2301.7 930.7
63649 19325.4 3124.2 2519.7 1016.7
66832 19776.0 2963.4 2368.1 947.2
70331 20784.6 3141.8 2487.4 1001.7
"""
EXPERTS = np.array([[float(x) for x in line.split()] for line in MIXTRAL.strip().splitlines()])


@pytest.mark.parametrize(
    ("total", "published"),
    [
        (12, "22111113"),
        (13, "23111113"),
        (14, "23111123"),
        (15, "23111133"),
        (16, "23111233"),
        (17, "23111333"),
        (18, "23112333"),
        (19, "23131333"),
        (20, "23132333"),
    ],
)
def test_experts_of_mc_moe(total: int, published: str) -> None:
    factor = significance(*torch.from_numpy(EXPERTS[:, :2].copy()).unbind(1)).tolist()
    units = [
        Unit(
            str(i),
            tuple(Option(str(b), factor[i] * EXPERTS[i, 1 + b], {"bits": b}) for b in (1, 2, 3)),
        )
        for i in range(8)
    ]
    side = Side(counts=(Count("3", at_least=1), Count("2", at_least=1)))
    found = allocate(units, [Budget("bits", total)], side)
    assert "".join(found.choice[str(i)] for i in range(8)) == published
