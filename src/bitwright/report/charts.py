"""Charts to look at: can the probabilities be trusted, and what do the bytes buy. PNG or SVG by the file's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.errors import BadInput, Refused
from bitwright.evaluate.metrics import ENOUGH_FOR_ECE, Totals, calibration_error
from bitwright.report.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#222222", "#b8b8b8"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette: distinct for colour-blind readers too."""


def reliability(totals: Mapping[str, Totals], path: Path, note: str = "") -> None:
    """Accuracy against confidence in 15 bins of equal width for each model, and below how many tokens lie where.

    On the diagonal a probability means what it says; below it the model is over-confident. Bars are two standard
    errors; bins with fewer than 30 tokens are not drawn.
    """
    figure = _figure(5.2, 5.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    top.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", zorder=1)
    for i, (name, total) in enumerate(totals.items()):
        colour = COLOURS[i % len(COLOURS)]
        bins = total.equal_width()
        count, confidence, correct = bins[:, bins[0] >= 30]
        accuracy = correct / count
        spread = 2 * np.sqrt(accuracy * (1 - accuracy) / count)
        style = {"color": colour, "linewidth": 1.4, "markersize": 4.5, "marker": "o", "elinewidth": 0.8}
        top.errorbar(confidence / count, accuracy, yerr=spread, label=_legend(name, total), **style)
        edges = np.linspace(0, 1, bins.shape[1] + 1)
        bottom.stairs(bins[0] / bins[0].sum(), edges, color=colour, linewidth=1.4)
    top.set(
        ylabel="share of right predictions", xlim=(0, 1), ylim=(0, 1), title="Reliability of next-token probabilities"
    )
    top.legend(frameon=False, loc="upper left", fontsize=8)
    bottom.set(xlabel="confidence (probability of the most likely token)", ylabel="share of\ntokens", ylim=(0, None))
    _finish(figure, (top, bottom), path, note)


def _legend(name: str, total: Totals) -> str:
    error = f", ECE {calibration_error(total.equal_width()):.3f}" if total.tokens >= ENOUGH_FOR_ECE else ""
    return f"{name}: balance {total.balance:+.3f} ± {1 / sqrt(total.tokens):.3f}{error}"


def quality_against_bytes(rows: Sequence[Row], path: Path, note: str = "", reference: str | None = None) -> None:
    """Perplexity against the size of the file, both logarithmic; models that no other beats in both are joined.

    `reference` names the row whose perplexity is drawn as a line: the float model.
    """
    points = [(r, r.file_bytes / 1e6, r.perplexity) for r in rows if r.file_bytes and r.perplexity]
    if not points:
        raise BadInput("there is nothing to plot: no model has both a file size and a perplexity.")
    figure = _figure(7.2, 4.8)
    axes = figure.subplots()
    front = _front([(size, ppl) for _, size, ppl in points])
    axes.plot(*zip(*front, strict=True), color=COLOURS[0], linewidth=1.2, alpha=0.6, zorder=1)
    for row, size, ppl in points:
        best = (size, ppl) in front
        axes.scatter(size, ppl, s=34, color=COLOURS[0] if best else "white", edgecolor=COLOURS[0], zorder=3)
        if row.name == reference:
            axes.axhline(ppl, color=FAINT, linewidth=1, linestyle="--", zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="file size, MB", ylabel="perplexity", title="What the bytes buy")
    axes.margins(x=0.12, y=0.12)
    _plain_ticks(axes)
    _label(figure, axes, [(row.name, size, ppl) for row, size, ppl in points])
    _finish(figure, (axes,), path, note)


def frontiers(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: Path, note: str = "") -> None:
    """Curves of a loss against megabytes, both logarithmic: a panel for each loss by its name, curves by theirs."""
    if not any(points for curves in panels.values() for points in curves.values()):
        raise BadInput("there is nothing to plot: no size has a loss above zero.")
    figure = _figure(0.8 + 5.2 * len(panels), 4.6)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (name, curves) in zip(axes, panels.items(), strict=True):
        for i, (curve, points) in enumerate(curves.items()):
            style = {"marker": "osD^v<>pP*"[i % 10], "markersize": 4.5, "linewidth": 1.3}
            xs, ys = zip(*sorted(points), strict=True) if points else ((), ())
            panel.plot(xs, ys, color=COLOURS[i % len(COLOURS)], label=curve, **style)
        panel.set(xscale="log", yscale="log", xlabel="file size, MB", ylabel=name)
        _plain_ticks(panel)
    axes[0].legend(frameon=False, fontsize=8)
    _finish(figure, tuple(axes), path, note)


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    front: list[tuple[float, float]] = []
    for size, ppl in sorted(points):
        if not front or ppl < front[-1][1]:
            front.append((size, ppl))
    return front


def _plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        narrow = high / low < 30
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if narrow else (1, 3), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def _label(figure: Figure, axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside their points, each at the first of eight places where it covers no point and no other name."""
    from matplotlib.transforms import Bbox

    places = [(7, 0, "left"), (-7, 0, "right"), (0, 9, "center"), (0, -9, "center")]
    places += [(7, 8, "left"), (7, -8, "left"), (-7, 8, "right"), (-7, -8, "right")]
    figure.draw_without_rendering()  # settles the layout, which the places depend on
    frame = axes.get_window_extent()
    at = [axes.transData.transform((size, ppl)) for _, size, ppl in points]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in at]
    for name, size, ppl in sorted(points, key=lambda point: point[1]):
        text: Any = None
        for dx, dy, side in places:
            if text is not None:
                text.remove()
            text = axes.annotate(
                name, (size, ppl), (dx, dy), textcoords="offset points", ha=side, va="center", fontsize=8, color=INK
            )
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Refused("charts need matplotlib: install it with `pip install bitwright[report]`.") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(figure: Figure, panels: Sequence[Axes], path: Path, note: str) -> None:
    if path.suffix not in (".png", ".svg"):
        raise BadInput(f"cannot draw {path}: give a name that ends in .png or .svg.")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee", linewidth=0.8)
        axes.set_axisbelow(True)
    if note:
        wrapped = fill(note, int(figure.get_figwidth() * 17))
        figure.supxlabel(wrapped, fontsize=7, color="#777777", x=0.01, ha="left")
    metadata = {"Date": None} if path.suffix == ".svg" else None
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata=metadata)
