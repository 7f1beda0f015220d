"""Output errors of single layers of SmolLM2 by binarization: a table in Markdown, to compare methods at equal bits.

An error is tr(D H D^T) over that of the whole weight, for the first rows of a layer, with H from the inputs that the
float model gives it. Run:

    python benchmarks/layer_errors.py CALIBRATION.jsonl.gz [LAYER ...]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from bitwright.calibrate.tokens import read_text, windows
from bitwright.formats.binary import Binary
from bitwright.formats.mixed import Mixed
from bitwright.formats.residual import Residual
from bitwright.formats.zoned import Zoned
from bitwright.linalg import Hessian
from bitwright.models.source import open_source
from bitwright.partitions.salience import Salience
from bitwright.protocols import Format, Solver
from bitwright.runtime.load import load_float
from bitwright.solvers.gptq import Gptq
from bitwright.solvers.rtn import Rtn

LAYERS = ("5.self_attn.q_proj", "4.self_attn.v_proj", "1.mlp.down_proj")
ROWS, LENGTH, COUNT = 192, 512, 20
SPLIT, ARB = Residual(2, 128, "split"), Residual(2, 128, rounds=3)
PB = Mixed(Binary(), Salience(0.3), 4)
METHODS: dict[str, tuple[Format, Solver]] = {
    "one plane, rounded to nearest": (Binary(128), Rtn()),
    "PB-LLM, 10 % at 4 bits": (Mixed(Binary(128), Salience(0.1), 4), Gptq()),
    "PB-LLM, 5 % at 8 bits": (Mixed(Binary(128), Salience(0.05), 8), Gptq()),
    "PB-LLM, 30 % at 4 bits, GPTQ alone": (PB, Gptq()),
    "PB-LLM, 30 % at 4 bits, damping 0.05": (PB, Gptq(damping=0.05)),
    "magnitude split alone, unweighted scales": (SPLIT, Gptq(weighted=False)),
    "magnitude split alone": (SPLIT, Gptq()),
    "magnitude split alone, group 64": (replace(SPLIT, group=64), Gptq()),
    "BiLLM, group 256": (Zoned(replace(SPLIT, group=256)), Gptq()),
    "BiLLM": (Zoned(), Gptq()),
    "BiLLM, unweighted scales": (Zoned(), Gptq(weighted=False)),
    "ARB": (ARB, Gptq()),
    "ARB, group 64": (replace(ARB, group=64), Gptq()),
    "ARB with column groups": (Zoned(ARB, "alternating"), Gptq()),
    "ARB-RC": (replace(ARB, columns="own"), Gptq()),
    "ARB-RC, one vector of column scales": (replace(ARB, columns="shared"), Gptq()),
    "ARB-RC, one vector, group 64": (replace(ARB, columns="shared", group=64), Gptq()),
}


def inputs(text: Path, names: list[str]) -> dict[str, tuple[torch.Tensor, Hessian]]:
    """Weight and Hessian of each layer."""
    model = load_float("smollm2")
    model.model.layers = model.model.layers[: 1 + max(int(name.split(".")[0]) for name in names)]
    ids = windows(open_source("smollm2").tokenizer(), read_text(text), LENGTH)[:COUNT]
    modules = {name: model.get_submodule(f"model.layers.{name}") for name in names}
    sums = {name: torch.zeros(2 * tuple(module.weight.shape[1:])) for name, module in modules.items()}
    for name, module in modules.items():

        def add(_: object, args: tuple[torch.Tensor], __: object, name: str = name) -> None:
            x = args[0].flatten(0, -2)
            sums[name] += 2 / ids.numel() * x.t() @ x

        module.register_forward_hook(add)
    with torch.inference_mode():
        for row in ids:
            model.model(row[None])
    return {name: (module.weight.detach(), Hessian(sums[name], ids.numel())) for name, module in modules.items()}


def main(text: str, *chosen: str) -> None:
    """The table."""
    found = inputs(Path(text), list(chosen or LAYERS))
    print("| method |" + "".join(f" {name}: bits | error |" for name in found))
    print("| --- |" + " --- | --- |" * len(found))
    for method, (fmt, solver) in METHODS.items():
        cells = ""
        for weight, hessian in found.values():
            w = weight[:ROWS].contiguous()
            bits = fmt.bits((weight.shape[0], weight.shape[1])).total / weight.numel()
            error = hessian.error(solver.solve(w, fmt, hessian).dequantize() - w) / hessian.error(w)
            cells += f" {bits:.2f} | {error:.4f} |"
        print(f"| {method} |{cells}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
