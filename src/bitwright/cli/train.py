"""`bitwright train`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli import quantize, tune
from bitwright.cli.output import Json, Threads, interruptible, note, print_json, quiet_stdout
from bitwright.errors import BadInput

HOURS = 1.0
PREFIX = "training."


def train(
    model: Annotated[str, typer.Argument(help="The float model: a folder, a GGUF file, or a name such as smollm2.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder to write.")],
    recipe: Annotated[str, typer.Option(help="Where training starts and how it goes on; see `bitwright recipes`.")],
    data: Annotated[list[Path], typer.Option(help="Text (.txt, .jsonl, .gz), repeatable.")],
    steps: Annotated[int | None, typer.Option(help="How long to train.")] = None,
    hours: Annotated[float | None, typer.Option(help="As many steps as fit in, by a probe; default: 1.")] = None,
    bits: Annotated[float | None, typer.Option(help="Stored bits a weight in the blocks, everything counted.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PART.FIELD=VALUE", help="Of the recipe, or training.FIELD=VALUE; repeatable."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Calibration tokens of the start; default: 20480.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the text.")] = 0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Train a model in the bits it will have (QAT): a recipe's solution, then its training. Goes on when repeated."""
    if steps is not None and hours is not None:
        raise BadInput("--steps and --hours both say how long: give one of them.")
    if hours is not None and not 0 < hours < math.inf:
        raise BadInput(f"--hours {hours:g}: give a positive number.")
    from bitwright.engine.settings import parse
    from bitwright.tune.ranks import Ranks
    from bitwright.tune.settings import learning, of_recipe
    from bitwright.tune.stages import start_of
    from bitwright.tune.stages import train as carry_out

    own = [text.removeprefix(PREFIX) for text in settings or [] if text.startswith(PREFIX)]
    job = quantize.make_job(
        model=model, out=out, recipe=recipe, bits=bits, data=tuple(data), tokens=tokens, seed=seed, threads=threads,
        settings=[text for text in settings or [] if not text.startswith(PREFIX)],
    )  # fmt: skip
    if hours is None and steps is None:
        hours = HOURS
    tuning = tune.make_tuning(
        learning(parse(own), of_recipe(recipe)), artifact=start_of(out), out=out, data=tuple(data), steps=steps,
        minutes=None if hours is None else 60 * hours, seed=seed, threads=threads,
    )  # fmt: skip
    with interruptible("run the same command again and it goes on where it was."), quiet_stdout(json):
        if Ranks().leads:
            note(f"{model}: the start of {recipe}, then training")
        told = tune.summary(tuning, carry_out(job, tuning, quantize.run, tune.run))
    if not Ranks().leads:
        return
    if json:
        print_json(told | {"base": model, "recipe": recipe})
    else:
        tune.print_summary(told)
