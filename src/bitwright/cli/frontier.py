"""`bitwright frontier`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.artifact.folder import writing_to
from bitwright.cli.evaluate import Plot
from bitwright.cli.output import Json, Threads, interruptible, print_json, print_table, progress, quiet_stdout
from bitwright.cli.quantize import make_job

if TYPE_CHECKING:
    from bitwright.engine.plan import Plan


def frontier(
    model: Annotated[str, typer.Argument(help="A model folder, a GGUF file, or a name: smollm2, gemma3-270m.")],
    recipe: Annotated[str, typer.Option(help="See `bitwright recipes`.")] = "gptq",
    points: Annotated[int, typer.Option(help="Sizes, from the smallest file to the largest of use.")] = 12,
    score: Annotated[str | None, typer.Option(help="What decides where bits matter.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Calibration text (.txt, .jsonl, .gz), repeatable; default: own samples.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Calibration tokens; default: 20480.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of one calibration sequence; 512 by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the calibration text.")] = 0,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="PART.FIELD=VALUE", help="Repeatable.")] = None,
    plot: Plot = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """What every size of file would lose: predicted divergence, with bits where they matter and with one format."""
    from bitwright.cli.measure import check_plot
    from bitwright.engine.frontier import frontier as plans

    check_plot(plot)
    job = make_job(
        model=model, out=Path("not-written"), recipe=recipe, score=score, data=tuple(data or ()), tokens=tokens,
        length=length, seed=seed, settings=settings or [], threads=threads,
    )  # fmt: skip
    with (
        interruptible("what was measured is kept: run the same command again."),
        quiet_stdout(json),
        progress() as step,
    ):
        rows = [_row(plan) for plan in plans(job, points, step)]
    if plot is not None:
        _draw(rows, plot, f"{model}, recipe {recipe}: divergence predicted by the score {rows[0]['score']}.")
    if json:
        print_json({"model": model, "recipe": recipe, "points": rows})
        return
    print_table(
        ["file MB", "block bits", "table bits", "predicted KL", "one format", "its KL", "KL of one more MB"],
        [
            [
                f"{row['file_bytes'] / 1e6:.2f}",
                f"{row['stored_bits_per_weight']:.3f}",
                "-" if row["table_bits"] is None else f"{row['table_bits']:.2f}",
                f"{row['loss']:.3g}",
                row["uniform"] or "-",
                "-" if row["uniform_loss"] is None else f"{row['uniform_loss']:.3g}",
                f"{-row['price']:.2g}",
            ]
            for row in rows
        ],
    )


def _row(plan: Plan) -> dict[str, Any]:
    decision = plan.decision
    assert decision is not None
    return {
        "file_bytes": plan.file_bytes,
        "stored_bits_per_weight": plan.stored_bits_per_weight,
        "table_bits": next((share.bits for share in decision.shares if share.part is None), None),
        "score": decision.score,
        "loss": decision.loss,
        "price": decision.price,
        "uniform": decision.uniform,
        "uniform_loss": decision.uniform_loss,
    }


def _draw(rows: list[dict[str, Any]], path: Path, note: str) -> None:
    from bitwright.report.charts import frontiers

    curves = {
        name: [(row["file_bytes"] / 1e6, row[loss]) for row in rows if row[loss]]
        for name, loss in (("bits where they matter", "loss"), ("one format for all blocks", "uniform_loss"))
    }
    with writing_to(path) as part:
        frontiers({"predicted KL divergence, nats a token": curves}, part, note)
