"""`bitwright bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.cli.output import (
    Json,
    Threads,
    interruptible,
    megabytes,
    print_json,
    print_table,
    progress,
    quiet_stdout,
)

if TYPE_CHECKING:
    from bitwright.evaluate.bench import Rates, Roofline
    from bitwright.runtime.engine import Engine

KINDS = ("decode", "context_1000", "prefill")


def bench(
    path: Annotated[Path, typer.Argument(help="A folder that bitwright wrote.")],
    against: Annotated[Path | None, typer.Option(help="A GGUF file: llama.cpp runs it in turns with ours.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each setting; medians are told.")] = 5,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure speed: decoding, prompts, loading, memory, and the share of what this machine could do."""
    from bitwright.evaluate.bench import Compiled, Lengths, Machine, Roofline, rates
    from bitwright.evaluate.llama_cpp import LlamaCpp
    from bitwright.evaluate.speed import peak_rss_bytes

    counts = sorted({1, threads or cores()})
    rival = None if against is None else LlamaCpp(against, counts[-1])
    engines, load_ms = load_engines(path, counts)
    peak = peak_rss_bytes()
    lengths = Lengths.of(engines[0].positions)
    ids = [(100 + i * 7 % 5000) % engines[0].vocabulary for i in range(1100)]
    machines: list[Machine] = [Compiled(engine, ids) for engine in engines]
    machines += [] if rival is None else [rival.with_threads(count) for count in counts]
    with interruptible("nothing is kept."), quiet_stdout(json), progress() as step:
        found = rates(machines, lengths, rounds, lambda done, of: step("rounds", done, of))
        step("ceilings", 0, None)
        roofs = [Roofline.of(engine, count) for engine, count in zip(engines, counts, strict=True)]
    if rival is not None:
        rival.close()
    told = {
        "path": str(path),
        "isa": isa(),
        "load_ms": load_ms,
        "peak_rss_bytes": peak,
        "lengths": asdict(lengths),
        **report(counts, found, roofs),
        "against": None if against is None else versus(against, counts, found),
        "kernels": kernels(path),
    }
    if json:
        print_json(told)
    else:
        show(told, counts)


def cores() -> int:
    """What this process may use."""
    import torch

    return torch.get_num_threads()


def isa() -> str:
    """The instruction-set level in use."""
    from bitwright.runtime import native

    return str(native.level())


def load_engines(path: Path, counts: list[int]) -> tuple[list[Engine], float]:
    """One engine a number of threads, and milliseconds from the folder to the first token, imports not counted."""
    from time import perf_counter

    from bitwright.artifact.read import open_artifact
    from bitwright.cli.subject import open_subject
    from bitwright.runtime.engine import open_engine

    open_subject(str(path), engine="native")  # refuses what has no engine, and imports what loading needs
    start = perf_counter()
    artifact = open_artifact(path)
    engines = [open_engine(artifact, counts[-1])]
    engines[0].core.forward([1])
    took = perf_counter() - start
    return [open_engine(artifact, count) for count in counts[:-1]] + engines, 1000 * took


def report(counts: list[int], found: list[Rates], roofs: list[Roofline]) -> dict[str, Any]:
    """The keys of the run with all threads, and every number of threads under "by_threads"."""
    rows = []
    for count, rate, roof in zip(counts, found, roofs, strict=False):
        rows.append(
            {
                "threads": count,
                **{kind: {"tokens_per_second": value} for kind, value in asdict(rate).items()},
                "bytes_per_token": roof.bytes_per_token,
                "gigabytes_per_second": roof.bytes_per_token * rate.decode / 1e9,
                "roofline_share": roof.share(rate.decode),
                "roofline": {**asdict(roof), "tokens_per_second": roof.tokens_per_second},
            }
        )
    return {**rows[-1], "by_threads": rows}


def versus(file: Path, counts: list[int], found: list[Rates]) -> dict[str, Any]:
    """Medians of llama.cpp, and ours divided by them."""
    ours, theirs = found[: len(counts)], found[len(counts) :]
    rows = []
    for count, a, b in zip(counts, ours, theirs, strict=True):
        ratios = {kind: asdict(a)[kind] / asdict(b)[kind] for kind in asdict(a)}
        rows.append({"threads": count, "tokens_per_second": asdict(b), "ratio": ratios})
    return {"file": str(file), **rows[-1], "by_threads": rows}


def kernels(path: Path) -> list[dict[str, Any]]:
    """Which code multiplies by which weights, and why."""
    from bitwright.artifact.read import open_artifact
    from bitwright.runtime.describe import describe

    rows: list[dict[str, Any]] = describe(open_artifact(path))["formats"]
    return rows


def show(told: dict[str, Any], counts: list[int]) -> None:
    """The table for people."""
    of = told["lengths"]
    headings = [f"decode behind {of['short']}", f"behind {of['long']}", f"prompt of {of['prompt']}"]
    lines = []
    for i, row in enumerate(told["by_threads"]):
        ours = [f"{row[kind]['tokens_per_second']:.0f}" for kind in KINDS]
        more = [f"{row['gigabytes_per_second']:.1f}", f"{row['roofline_share']:.0%}"]
        lines.append([f"bitwright, {counts[i]} threads", *ours, *more])
        if told["against"] is not None:
            other = told["against"]["by_threads"][i]
            theirs = [f"{other['tokens_per_second'][kind]:.0f}" for kind in KINDS]
            lines.append([f"llama.cpp, {counts[i]} threads", *theirs, "", ""])
            lines.append(["ratio", *(f"{other['ratio'][kind]:.2f}" for kind in KINDS), "", ""])
    print_table(["tokens/s", *headings, "GB/s", "of roofline"], lines)
    print(
        f"{megabytes(told['bytes_per_token'])} of weights a token; first token {told['load_ms']:.0f} ms after loading "
        f"began; peak memory {megabytes(told['peak_rss_bytes'])}"
    )
    for row in told["kernels"]:
        print(f"{row['weights']} weights: {', '.join(row['paths'])}")
