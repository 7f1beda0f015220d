"""`bitwright generate`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bitwright.cli.output import Budget, Json, SkipExperts, Threads, megabytes, note, parse_size, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator

MaxTokens = Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most probable token.")]
TopP = Annotated[float, typer.Option("--top-p", help="Draw from the most probable tokens of this joint probability.")]
Seed = Annotated[int, typer.Option(help="Of the draws.")]
EngineOption = Annotated[
    Literal["auto", "native", "torch"], typer.Option(help="native: the compiled engine; auto: where it can run.")
]


def generate(
    path: Annotated[str, typer.Argument(help="A folder that bitwright wrote, or a float model.")],
    prompt: Annotated[str, typer.Option(help="The text to go on from.")],
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    engine: EngineOption = "auto",
    budget: Budget = None,
    skip_experts: SkipExperts = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Continue a text, printing it as it comes; speed and memory at the end, on stderr."""
    from bitwright.cli.subject import open_subject
    from bitwright.runtime.generate import Sampling, stream

    sampling = Sampling(temperature, top_p, seed)
    set_threads(threads)
    subject = open_subject(path, engine=engine, budget=parse_size(budget, "--budget"), skip=skip_experts)
    tokenizer = subject.tokenizer()
    ids = list(tokenizer(prompt)["input_ids"])
    speaker = subject.speaker()
    told = write_pieces(stream(speaker, tokenizer, ids, max_tokens=max_tokens, sampling=sampling), to_stderr=json)
    note(f"[{speaker.why}]")
    if json:
        print_json({"prompt": prompt, "prompt_tokens": len(ids), "engine": speaker.why, **told})


def set_threads(threads: int | None) -> None:
    """How many processor threads torch and the compiled kernels use."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def write_pieces(pieces: Iterator[str], to_stderr: bool) -> dict[str, Any]:
    """Print pieces as they come, one a token; Ctrl-C ends them. Returns text, count and speed."""
    from bitwright.evaluate.speed import peak_rss_bytes

    target = sys.stderr if to_stderr else sys.stdout
    said: list[str] = []
    began = first = time.perf_counter()
    try:
        for piece in pieces:
            if not said:
                first = time.perf_counter()
            said.append(piece)
            print(piece, end="", file=target, flush=True)
    except KeyboardInterrupt:
        pass  # the user has read enough: what came so far is the answer
    ended = time.perf_counter()
    print(file=target)
    count = max(len(said) - 1, 0)  # the last piece is the rest of an incomplete character
    rate = (count - 1) / (ended - first) if count > 1 else None
    peak = peak_rss_bytes()
    speed = f"{rate:.1f} tokens/s" if rate else "too few tokens for a speed"
    note(f"[{count} tokens, first after {first - began:.2f} s, {speed}, peak memory {megabytes(peak)}]")
    return {
        "text": "".join(said),
        "tokens": count,
        "tokens_per_second": rate,
        "seconds": ended - began,
        "peak_rss_bytes": peak,
    }
