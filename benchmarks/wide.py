"""A wide model of random weights in the compiled engine: speed by width and threads, beside the roofline; many texts at
once; and a neighbour that keeps one core busy.

python benchmarks/wide.py speed [--widths 4 3 2 ternary 1] [--against FOLDER] [--json FILE]
python benchmarks/wide.py gguf FOLDER          (the same shape for llama.cpp: Q4_0, Q2_K, TQ2_0)
python benchmarks/wide.py batch [MODEL]        (1 and 8 texts; MODEL: a packed folder, else wide at 4 bits)
python benchmarks/wide.py neighbour [MODEL]    (1 and 2 threads, alone and beside a process that spins on one core)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers

from bitwright.evaluate.bench import Compiled, Lengths, Machine, Rates, Roofline, rates
from bitwright.formats.integer import Integer
from bitwright.formats.ternary import Ternary
from bitwright.protocols import Format
from bitwright.runtime.engine import Engine, build, open_engine
from bitwright.runtime.linear import QEmbedding, QLinear, TiedHead
from bitwright.solvers.rtn import Rtn

GROUP = 128
WIDTHS: dict[str, Format] = {
    "4": Integer(4, GROUP, "symmetric"),
    "3": Integer(3, GROUP, "symmetric"),
    "2": Integer(2, GROUP, "symmetric"),
    "ternary": Ternary(160, "base3"),
    "1": Integer(1, GROUP, "midrise"),
}
HEAD = Integer(4, GROUP, "symmetric")
VOCABULARY = 32000
SHAPE: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
LLAMA_TYPES = ("Q4_0", "Q2_K", "TQ2_0")


def model_of(fmt: Format) -> Any:
    """Random weights; those of one shape are rounded once and copied into every layer."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    planes: dict[tuple[Format, tuple[int, int]], Any] = {}

    def filled(kind: type[QLinear] | type[QEmbedding], own: Format, shape: tuple[int, int]) -> Any:
        if (own, shape) not in planes:
            planes[own, shape] = Rtn().solve(torch.randn(shape) * shape[1] ** -0.5, own, None).planes
        layer = kind(own, shape)
        layer.fill({name: plane.clone() for name, plane in planes[own, shape].items()})
        return layer

    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, old in list(parent.named_children()):
                if isinstance(old, torch.nn.Linear):
                    setattr(parent, name, filled(QLinear, fmt, (old.out_features, old.in_features)))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta and parameter.dim() == 1:
                setattr(module, name, torch.nn.Parameter(torch.ones(parameter.shape), requires_grad=False))
    table = filled(QEmbedding, HEAD, (VOCABULARY, SHAPE["hidden_size"]))
    model.model.embed_tokens, model.lm_head = table, TiedHead(table)
    return model


def engine_of(model: Path | None, threads: int) -> Engine:
    """Of a packed folder, or of the wide model at 4 bits."""
    if model is None:
        return build(model_of(WIDTHS["4"]), threads)
    from bitwright.artifact.read import open_artifact

    return open_engine(open_artifact(model), threads)


def ids_of(engine: Engine) -> list[int]:
    return [(100 + i * 7 % 5000) % engine.vocabulary for i in range(1100)]


def speed(widths: list[str], against: Path | None, rounds: int) -> list[dict[str, Any]]:
    from bitwright.evaluate.llama_cpp import LlamaCpp

    rows: list[dict[str, Any]] = []

    def tell(name: str, threads: int, rate: Rates, roof: Roofline | None) -> None:
        share = None if roof is None else round(roof.share(rate.decode), 3)
        rows.append({"weights": name, "threads": threads, **vars(rate), "roofline_share": share})
        print(
            f"{name:18} {threads} threads: {rate.decode:7.1f} {rate.context_1000:7.1f} {rate.prefill:8.1f}", share or ""
        )

    counts = sorted({1, os.cpu_count() or 1})
    files = [] if against is None else sorted(against.glob("*.gguf"))
    print(f"tokens/s: decode, behind 1000, prompt of 512; share of the roofline; load average {os.getloadavg()[0]:.1f}")
    for width in widths:
        model = model_of(WIDTHS[width])
        engines = [build(model, count) for count in counts]
        rivals = [LlamaCpp(file, counts[-1]) for file in files] if width == widths[0] else []
        machines: list[Machine] = [Compiled(engine, ids_of(engine)) for engine in engines]
        machines += [rival.with_threads(count) for rival in rivals for count in counts]
        found = rates(machines, Lengths.of(engines[0].positions), rounds)
        for engine, count, rate in zip(engines, counts, found, strict=False):
            tell(f"{width} bits", count, rate, Roofline.of(engine, count))
        names = [(file.stem, count) for file in files for count in counts] if rivals else []
        for (name, count), rate in zip(names, found[len(counts) :], strict=True):
            tell(name, count, rate, None)
        for rival in rivals:
            rival.close()
    return rows


def gguf(folder: Path) -> None:
    import gguf as format
    import numpy as np

    hidden, ffn, kv = SHAPE["hidden_size"], SHAPE["intermediate_size"], 64 * SHAPE["num_key_value_heads"]
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "wide.F16.gguf"
    writer = format.GGUFWriter(source, "llama")
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_rope_dimension_count(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.standard_normal((rows, columns), np.float32) * columns**-0.5
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    matrix("token_embd", VOCABULARY, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for i in range(SHAPE["num_hidden_layers"]):
        for name, rows, columns in (
            ("attn_q", hidden, hidden), ("attn_k", kv, hidden), ("attn_v", kv, hidden), ("attn_output", hidden, hidden),
            ("ffn_gate", ffn, hidden), ("ffn_up", ffn, hidden), ("ffn_down", hidden, ffn),
        ):  # fmt: skip
            matrix(f"blk.{i}.{name}", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    command = [sys.executable, str(Path(__file__).with_name("llama_files.py")), str(source), str(folder), *LLAMA_TYPES]
    subprocess.run(command, check=True)
    source.unlink()


def batch(model: Path | None, rounds: int) -> list[dict[str, Any]]:
    """Tokens a second of all texts together, behind 16 tokens each, 32 more."""
    engine = engine_of(model, os.cpu_count() or 1)
    core, ids, steps = engine.core, ids_of(engine), 32
    found: dict[int, list[float]] = {1: [], 8: []}
    for turn in range(rounds + 1):
        for texts, times in found.items():
            numbers = [core.open() for _ in range(texts)]
            for number in numbers:
                core.forward(ids[:16], sequence=number)
            start = perf_counter()
            for i in range(steps):
                core.step(numbers, [ids[16 + i]] * texts)
            took = perf_counter() - start
            for number in numbers:
                core.close(number)
            if turn:
                times.append(texts * steps / took)
    rows = [{"texts": texts, "tokens_per_second": median(times)} for texts, times in found.items()]
    for row in rows:
        print(f"{row['texts']} texts: {row['tokens_per_second']:.1f} tokens/s")
    print(f"ratio {rows[1]['tokens_per_second'] / rows[0]['tokens_per_second']:.2f}")
    return rows


SPIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); print(flush=True)\nwhile True: pass"


def neighbour(model: Path | None, rounds: int) -> list[dict[str, Any]]:
    """Medians; the neighbour has the first core this process may use."""
    rows: list[dict[str, Any]] = []
    for threads in (1, 2):
        engine = engine_of(model, threads)
        machine = Compiled(engine, ids_of(engine))
        for beside in (False, True):
            core = str(min(os.sched_getaffinity(0)))
            other = subprocess.Popen([sys.executable, "-c", SPIN, core], stdout=subprocess.PIPE) if beside else None
            if other is not None:
                assert other.stdout is not None
                other.stdout.readline()
            try:
                machine.decode(16, 64)
                speed = 64 / median(machine.decode(16, 64) for _ in range(rounds))
            finally:
                if other is not None:
                    other.kill()
                    other.wait()
            rows.append({"threads": threads, "neighbour": beside, "tokens_per_second": speed})
            print(f"{threads} threads{', one core busy' if beside else ''}: {speed:.1f} tokens/s")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "gguf", "batch", "neighbour"))
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--against", type=Path, help="folder with GGUF files: llama.cpp in turns")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.what == "gguf":
        return gguf(options.path)
    run = {"batch": batch, "neighbour": neighbour}.get(options.what)
    rows = run(options.path, options.rounds) if run else speed(options.widths, options.against, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return None


if __name__ == "__main__":
    main()
