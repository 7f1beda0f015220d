"""`bitwright demo`: the main job on a small model, from float weights to a talking 3-bit model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.output import duration, interruptible, note, progress

if TYPE_CHECKING:
    from bitwright.cli.subject import Subject

MODEL = "smollm2"
RECIPE = "gptq"
BITS = 3.5
WINDOWS = 6
QUESTIONS = ("What is the capital of France?", "Why is the sky blue?")


def demo(folder: Annotated[Path, typer.Argument(help="Where everything is written.")] = Path("bitwright-demo")) -> None:
    """Quantize SmolLM2-135M, verify it, measure it against the float model and let it speak.

    What an earlier demo made is used again.
    """
    import time

    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("BITWRIGHT_CACHE", str((folder / "cache").absolute()))
    out = folder / f"{MODEL}-{RECIPE}-{BITS:g}bit"
    with interruptible("run ./dev demo again and it goes on where it was."):
        _quantize(out)
        subject = _measure(out)
        _speak(subject)
    note(f"all of it took {duration(time.monotonic() - began)}; the model is in {out}")


def _quantize(out: Path) -> None:
    from bitwright.cli.quantize import make_job, print_summary, run, summary

    if out.exists():
        from bitwright.artifact.read import open_artifact

        note(f"1. {out} is there from an earlier demo; its files are compared with their recorded hashes")
        open_artifact(out).verify_hashes()
        return
    note(f"1. quantizing {MODEL} with the recipe {RECIPE}; the calibration text is sampled from the model itself")
    job = make_job(model=MODEL, out=out, recipe=RECIPE, bits=BITS, settings=[])
    print_summary(summary(job, run(job), out))


def _measure(out: Path) -> Subject:
    from bitwright.cli.measure import measure, print_measured, protocol_line
    from bitwright.cli.subject import open_subject

    note("\n2. measuring it beside the float model, on a text that comes with Python")
    packed, float_model = open_subject(str(out)), open_subject(MODEL)
    with progress() as step:
        found = measure([float_model, packed], float_model, None, WINDOWS, step)
    rows = list(found.values())
    print_measured(rows, protocol_line(rows, "int8"))
    return packed


def _speak(subject: Subject) -> None:
    from bitwright.cli.generate import write_pieces
    from bitwright.runtime.generate import chat_ids, stream

    note("\n3. the quantized model answers")
    tokenizer, speaker = subject.tokenizer(), subject.speaker()
    for question in QUESTIONS:
        print(f"> {question}")
        ids = chat_ids(tokenizer, [{"role": "user", "content": question}])
        write_pieces(stream(speaker, tokenizer, ids, max_tokens=60), to_stderr=False)
