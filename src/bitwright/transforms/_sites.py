"""Where a scale or a rotation of a linear's input can be undone, found by trying: no family is known here.

A *site* is a wave of linears and the producer of their input: a norm, or a linear before them whose output rows arrive
as their input columns with nothing but a linear map of each row between (values through attention, the ungated half of
a gated layer, a layer before ReLU). With grouped queries several columns come from one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitwright.block_task import BlockTask
from bitwright.calibrate.observe import inputs

BASE = 8  # digits of a row's number, tried as exact powers of two
KEPT = 1e-3  # share of the change of an output that may remain once it is undone: rounding


@dataclass(frozen=True)
class Site:
    """`source` int64 [C]: the producer's channel that each input column comes from, -1 where it was not seen."""

    producer: str
    plus: float | None  # of a norm: its gain is weight + plus; None: the producer is a linear
    consumers: tuple[str, ...]
    channels: int
    source: Tensor

    def columns(self, values: Tensor, unseen: float) -> Tensor:
        """Values of channels [channels] for each column [C]."""
        return torch.where(self.source >= 0, values[self.source.clamp(min=0)], unseen)

    def mean(self, values: Tensor) -> Tensor:
        """Values of columns [C] averaged over those that come from each channel; 0 for channels without any."""
        seen = self.source >= 0
        total = torch.zeros(self.channels).index_add_(0, self.source[seen], values[seen])
        count = torch.zeros(self.channels).index_add_(0, self.source[seen], seen[seen].float())
        return total / count.clamp(min=1)


def sites(task: BlockTask) -> Iterator[tuple[tuple[str, ...], Site | None]]:
    """Every wave that has something to quantize, and where its input can be scaled."""
    before: list[str] = []
    for wave in task.waves:
        if any(name in task.formats for name in wave):
            found = (site for site in _candidates(task, wave, tuple(before)) if _holds(task, site))
            yield wave, next(found, None)
        before += wave


def scale(task: BlockTask, site: Site, s: Tensor) -> None:
    """Divide the producer's channels by s [channels] > 0 and multiply what consumes them.

    What a norm loses where it is rounded to its stored type, the consumers make up for.
    """
    s = torch.where(torch.isin(torch.arange(site.channels), site.source), s, 1.0)
    producer = task.module.get_submodule(site.producer)
    weight, bias = producer.weight, producer.bias if hasattr(producer, "bias") else None
    assert isinstance(weight, nn.Parameter)
    if site.plus is None:
        weight.div_(s[:, None])
    else:
        gain = weight + site.plus
        stored = (gain / s - site.plus).to(task.types[f"{site.producer}.weight"]).float()
        exact = (gain / (stored + site.plus)).nan_to_num(0.0, 0.0, 0.0)
        s = torch.where(exact > 0, exact, 1.0)
        weight.copy_(torch.where(exact > 0, stored, weight))
    if isinstance(bias, nn.Parameter):
        bias.div_(s)
    for name in site.consumers:
        _weight(task, name).mul_(site.columns(s, 1.0))


def rotate(task: BlockTask, site: Site, rotations: Tensor) -> None:
    """Each run of n channels, as a row vector, times its own orthogonal matrix; `rotations` [channels / n, n, n].

    The producer is a linear, and columns come from channels in aligned runs (`runs`).
    """
    producer = task.module.get_submodule(site.producer)
    assert isinstance(producer, nn.Linear)
    count, n, _ = rotations.shape
    used = torch.isin(torch.arange(count), site.source // n)  # beside values, a fused projection makes other things
    rotations = torch.where(used[:, None, None], rotations, torch.eye(n))
    producer.weight.copy_(torch.einsum("bij,bic->bjc", rotations, producer.weight.view(count, n, -1)).flatten(0, 1))
    if producer.bias is not None:
        producer.bias.copy_(torch.einsum("bij,bi->bj", rotations, producer.bias.view(count, n)).flatten())
    own = rotations[site.source[::n] // n]
    for name in site.consumers:
        weight = _weight(task, name)
        weight.copy_(torch.einsum("rbi,bij->rbj", weight.view(len(weight), -1, n), own).flatten(1))


def runs(site: Site, n: int) -> bool:
    """Whether columns come from channels in aligned runs of n."""
    if len(site.source) % n or site.channels % n or bool((site.source < 0).any()):
        return False
    first = site.source[::n]
    whole = torch.equal(site.source, (first[:, None] + torch.arange(n)).flatten())
    return whole and not bool((first % n).any())


def undone(task: BlockTask, producer: str, consumers: tuple[str, ...]) -> _Trial:
    """A trial of a change to a producer and its consumers, see `_Trial`."""
    return _Trial(task, producer, consumers)


class _Trial:
    """`with undone(...) as trial: change; trial.holds()`: whether the block's output stayed what it was, although the
    change of the producer alone would have changed it. Everything is put back afterwards."""

    def __init__(self, task: BlockTask, producer: str, consumers: tuple[str, ...]) -> None:
        self.task = task
        made, taken = task.module.get_submodule(producer), map(task.module.get_submodule, consumers)
        self.made = [(p, p.clone()) for p in made.parameters(recurse=False)]
        self.taken = [(p, p.clone()) for module in taken for p in module.parameters(recurse=False)]
        self.output = task.run(task.probe)

    def __enter__(self) -> _Trial:
        return self

    def __exit__(self, *_: object) -> None:
        for parameter, value in (*self.made, *self.taken):
            parameter.copy_(value)

    def holds(self) -> bool:
        """Whether the change is undone."""
        left = float((self.task.run(self.task.probe) - self.output).norm())
        for parameter, value in self.taken:
            parameter.copy_(value)
        whole = float((self.task.run(self.task.probe) - self.output).norm())
        return left <= KEPT * whole and whole > 0


def _holds(task: BlockTask, site: Site) -> bool:
    generator = torch.Generator().manual_seed(0)
    with undone(task, site.producer, site.consumers) as trial:
        scale(task, site, 2.0 ** torch.randint(-1, 2, (site.channels,), generator=generator))
        return trial.holds()


def _candidates(task: BlockTask, wave: tuple[str, ...], before: tuple[str, ...]) -> Iterator[Site]:
    """Norms of the right width, and linears before the wave whose rows arrive as its columns."""
    columns = _weight(task, wave[0]).shape[1]
    for name, module in task.module.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.shape == (columns,):
            for plus in (0.0, 1.0):
                yield Site(name, plus, wave, columns, torch.arange(columns))
    for name in reversed(before):
        for source in sorted(_sources(task, name, wave[0]), key=lambda source: -int((source >= 0).sum())):
            if bool((source >= 0).any()):
                yield Site(name, None, wave, len(_weight(task, name)), source)


def _sources(task: BlockTask, producer: str, consumer: str) -> list[Tensor]:
    """Where the columns of a consumer come from, [C]: as all tokens tell, and as the first of each sequence does, on
    which attention has nothing to choose from.

    Rows times powers of two arrive as columns times the same powers, to the last bit.
    """
    layer, made = task.module.get_submodule(consumer), task.module.get_submodule(producer)
    assert isinstance(layer, nn.Linear)
    assert isinstance(made, nn.Linear)
    rows = torch.arange(made.out_features)
    digits = [rows // BASE**place % BASE + 1 for place in range(_places(len(rows)))]
    usual = inputs(task.run, layer.weight, task.probe)
    found = [torch.zeros(layer.in_features, dtype=torch.int64) for _ in range(2)]
    for place, digit in enumerate(digits):
        with undone(task, producer, ()):
            made.weight.mul_(2.0 ** digit[:, None])
            if made.bias is not None:
                made.bias.mul_(2.0**digit)
            moved = inputs(task.run, layer.weight, task.probe)
        for tokens, source in ((slice(None), found[0]), (slice(1), found[1])):
            old, new = usual[:, tokens].flatten(0, -2), moved[:, tokens].flatten(0, -2)
            at = old.abs().argmax(0, keepdim=True)
            ratio = (new.gather(0, at) / old.gather(0, at))[0].log2()
            seen = (ratio == ratio.round()) & (ratio >= 1) & (ratio <= BASE)
            source.copy_(torch.where(seen & (source >= 0), source + (ratio.nan_to_num(0) - 1).long() * BASE**place, -1))
    return [source.masked_fill(source >= len(rows), -1) for source in found]


def _places(rows: int) -> int:
    places = 1
    while BASE**places < rows:
        places += 1
    return places


def _weight(task: BlockTask, name: str) -> Tensor:
    layer = task.module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer.weight
