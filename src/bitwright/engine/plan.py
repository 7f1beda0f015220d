"""What will be made: every weight, its format and its exact bytes, before any work is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from bitwright.artifact.layout import Origin, Quantization, RecipeRow, Weight, expert_name, expert_of
from bitwright.artifact.plan import Part, plan_rows, totals
from bitwright.artifact.steps import Step, levels
from bitwright.artifact.write import Contents, predicted_bytes
from bitwright.bits import Bits, total
from bitwright.engine import plan_file, settings
from bitwright.engine.allocation import Decision, decide
from bitwright.engine.job import Job
from bitwright.engine.speed import Latency, latency
from bitwright.engine.units import Shapes
from bitwright.errors import Refused, TooFewBits
from bitwright.protocols import Adaptive, Format, PlaneSpec
from bitwright.recipe import Menu, Recipe
from bitwright.spec import to_spec

if TYPE_CHECKING:
    from bitwright.engine.quantize import Progress
    from bitwright.models.source import Source
    from bitwright.models.structure import Structure
    from bitwright.sensitivity.table import Table


@dataclass(frozen=True)
class Plan:
    """Everything that decides an artifact except its codes."""

    recipe: Recipe
    caution: str | None
    contents: Contents
    formats: dict[str, Format]  # weight name -> format, in order of use
    decision: Decision | None = None  # of the allocator, if it chose the formats

    @property
    def file_bytes(self) -> int:
        """Exact size of all safetensors files."""
        return predicted_bytes(self.contents.shards())

    @property
    def bits(self) -> Bits:
        """Stored bits of the block linears."""
        rows = plan_rows(self.contents.quantization, self.contents.parts)
        return total(Bits(**row.bits) for row in rows if row.part == "block")

    @property
    def stored_bits_per_weight(self) -> float:
        """Of the block linears, everything counted."""
        rows = plan_rows(self.contents.quantization, self.contents.parts)
        return totals(rows, self.contents.kept, self.file_bytes).stored_bits_per_weight

    @property
    def needs_text(self) -> bool:
        """Whether anything is measured on calibration text."""
        return self.needs_inputs or bool(self.contents.steps)

    @property
    def needs_inputs(self) -> bool:
        """Whether the inputs of blocks are followed through the model."""
        recipe = self.recipe
        return recipe.solver.needs_hessian or bool(recipe.transforms) or recipe.refiner is not None

    def ordered(self, steps: tuple[Step, ...]) -> Plan:
        """The same plan with its steps in this order."""
        return replace(self, contents=replace(self.contents, steps=steps))

    def expert_formats(self, stack: str, experts: int) -> list[Format] | None:
        """Of the experts of a stack; None where they are kept."""
        if stack in self.formats:
            return [self.formats[stack]] * experts
        own = [self.formats.get(expert_name(stack, e)) for e in range(experts)]
        return [fmt for fmt in own if fmt is not None] or None

    def signed(self, origin: Origin) -> Plan:
        """The same plan with its origin known."""
        return replace(self, contents=replace(self.contents, origin=origin))


def make_plan(
    job: Job,
    source: Source,
    structure: Structure,
    table: Table | None = None,
    progress: Progress = lambda what, done, of: None,
) -> Plan:
    """The plan of a job: formats from a file, from the allocator given a `table`, or one for all.

    Without a table `--target-size` is met by the most bits that fit.
    """
    if job.plan is not None or table is not None:
        return _mixed(job, source, structure, table, progress)
    shapes = [matrix for _, shape in block_weights(source, structure) for matrix in _matrices(shape)]

    def at(bits: float | None) -> Plan:
        recipe, caution = settings.choose(job.recipe, job.settings, bits, shapes)
        return _planned(recipe, caution, source, structure, job.settings)

    if job.target_bytes is None:
        return at(job.bits)
    return _largest(job.target_bytes, at)


def smallest_plan(job: Job, menu: Menu, source: Source, structure: Structure) -> Plan:
    """Everything in its smallest format: no choice of the allocator makes a smaller file."""
    recipe, caution = settings.choose(job.recipe, job.settings, None, [])
    recipe = settings.beside(recipe, menu, job.settings)
    cheapest = tuple(
        (n, _cheapest(menu.formats, s))
        for n, s in block_weights(source, structure)
        if settings.offered(recipe, menu, job.settings, n)
    )
    embedding = recipe.embedding
    if embedding is not None and settings.free_tables(job, menu):
        embedding = _cheapest(menu.tables, source.shape(structure.embedding + ".weight"))
    smallest = replace(recipe, rules=(*cheapest, *recipe.rules), embedding=embedding)
    return _planned(smallest, caution, source, structure, job.settings)


def refuse_unreachable(job: Job, menu: Menu, source: Source, structure: Structure) -> None:
    """`Refused` with the smallest size there is, before anything is measured."""
    plan = smallest_plan(job, menu, source, structure)
    if job.target_bytes is not None and plan.file_bytes > job.target_bytes:
        rows = plan_rows(plan.contents.quantization, plan.contents.parts)
        largest, more = max(rows, key=lambda row: row.bytes), plan.file_bytes - job.target_bytes
        raise Refused(
            f"a file of {job.target_bytes / 1e6:.4g} MB cannot be reached with the formats of {job.recipe}: the "
            f"smallest file is {plan.file_bytes / 1e6:.4g} MB, {more / 1e6:.3g} MB more "
            f"(most of it: {largest.name} {largest.bytes / 1e6:.3g} MB); give a larger size or another recipe."
        )
    if job.target_bpw is not None and plan.stored_bits_per_weight > job.target_bpw:
        raise Refused(
            f"{job.target_bpw} bits a weight cannot be reached with the formats of {job.recipe}: the smallest choice "
            f"stores {plan.stored_bits_per_weight:.3f}; give that or more, or another recipe."
        )


def _cheapest(formats: tuple[Format, ...], shape: tuple[int, ...]) -> Format:
    return min(formats, key=lambda fmt: fmt.bits((shape[-2], shape[-1])).total)


def _mixed(job: Job, source: Source, structure: Structure, table: Table | None, progress: Progress) -> Plan:
    recipe, caution = settings.choose(job.recipe, job.settings, None, [])
    weights = dict(matrix for weight in block_weights(source, structure) for matrix in _experts(*weight))

    def planned(recipe: Recipe) -> Plan:
        return _planned(recipe, caution, source, structure, job.settings)

    if table is None:
        assert job.plan is not None
        return planned(plan_file.read(job.plan, recipe, tuple(weights)))
    menu = settings.menu(job)
    assert menu is not None
    recipe = settings.beside(recipe, menu, job.settings)
    heads = [structure.embedding] + ([structure.head] if structure.head and not structure.tied else [])
    tables = {name: source.shape(name + ".weight") for name in heads}

    def timed(blocks: Shapes, head: Shapes) -> Latency:
        def all_in(fmt: Format) -> Plan:
            return planned(replace(recipe, format=fmt))

        return latency(job, menu, source, all_in, blocks, head, progress)

    chosen = {n: shape for n, shape in weights.items() if settings.offered(recipe, menu, job.settings, n)}
    plan, decision = decide(job, recipe, menu, table, chosen, tables, planned, timed)
    return replace(plan, decision=decision)


def _largest(target: int, at: Any) -> Plan:
    """Bisection over hundredths of a bit; recipes refuse what they cannot reach."""
    best: Plan | None = None
    least: int | None = None
    other: Refused | None = None
    low, high = 100, 850
    while low <= high:
        middle = (low + high) // 2
        try:
            plan = at(middle / 100)
        except TooFewBits:
            low = middle + 1
            continue
        except Refused as error:  # more than the recipe can use, or another reason
            other, high = error, middle - 1
            continue
        least = plan.file_bytes if least is None else min(least, plan.file_bytes)
        if plan.file_bytes <= target:
            best, low = plan, middle + 1
        else:
            high = middle - 1
    if best is None and least is None and other is not None:
        raise other
    if best is None:
        told = f"the smallest file is {least / 1e6:.3g} MB" if least else "no setting fits"
        raise Refused(
            f"a file of {target / 1e6:.3g} MB cannot be reached with this recipe: {told}; "
            "choose a recipe with fewer bits or fewer bits for the embedding (--set embedding.bits_per_code=4)."
        )
    return best


def _planned(recipe: Recipe, caution: str | None, source: Source, structure: Structure, asked: dict[str, str]) -> Plan:
    formats: dict[str, Format] = {}
    weights: list[tuple[str, tuple[int, ...], Format]] = []
    parts: dict[str, Part] = {}
    tied: tuple[tuple[str, str], ...] = ()
    if recipe.embedding is not None:
        _check_rows_apart(recipe.embedding)
        weights.append((structure.embedding, source.shape(structure.embedding + ".weight"), recipe.embedding))
        parts[structure.embedding] = "embedding"
        if structure.tied and structure.head:
            tied = ((structure.head, structure.embedding),)
    linears = block_weights(source, structure)
    settings.refuse_idle(recipe, asked, [own for n, s in linears for own in (n, *(e for e, _ in _experts(n, s)))])
    for name, shape in linears:
        weights += [(n, s, fmt) for n, s, fmt in _stored_as(recipe, name, shape) if fmt is not None]
    if recipe.embedding is not None and structure.head and not structure.tied:
        weights.append((structure.head, source.shape(structure.head + ".weight"), recipe.embedding))
        parts[structure.head] = "head"
    formats = {name: fmt for name, _, fmt in weights}
    distinct = list(dict.fromkeys(formats.values()))
    quantization = Quantization(
        formats=tuple(to_spec(fmt) for fmt in distinct),
        weights=tuple(Weight(name=n, format=distinct.index(f), shape=tuple(s)) for n, s, f in weights),
        tied=tied,
    )
    stored = {n + ".weight" for n, _, _ in weights} | {n for n, shape, _ in weights if len(shape) == 3}
    stored |= {part[0] for n, _, _ in weights if (part := expert_of(n)) is not None}
    kept = {}
    for name in source.names():
        if name not in stored:
            kept[name] = PlaneSpec(source.tensor(name).dtype, tuple(source.shape(name)))
    origin = Origin(
        bitwright=_version(),
        recipe=RecipeRow(name=recipe.name, settings=dict(asked), spec=to_spec(recipe)),
        fingerprint="",
    )
    config = source.config.to_dict() | {"dtype": _float_type(kept)}
    contents = Contents(config, quantization, kept, origin, parts, levels(quantization))
    return Plan(recipe, caution, contents, formats)


def _stored_as(recipe: Recipe, name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...], Format | None]]:
    """A weight as it is, or the experts of a stack one by one where their formats differ."""
    if len(shape) == 2:
        return [(name, shape, recipe.format_of(name))]
    experts = [(expert_name(name, e), shape[1:], recipe.format_of(expert_name(name, e), name)) for e in range(shape[0])]
    formats = {fmt for _, _, fmt in experts}
    if any(isinstance(fmt, Adaptive) for fmt in formats):
        raise Refused(f"{name} is a stack of experts, whose scales tokens cannot mix: give it another format by rules.")
    if len(formats) == 1:
        return [(name, shape, formats.pop())]
    if None in formats:
        raise Refused(f"some experts of {name} have a format and some are kept: keep all of them or none.")
    return experts


def _check_rows_apart(fmt: Format) -> None:
    """Tables are rounded and looked up a few rows at a time: every plane must grow with the tiles of rows."""
    small, large = fmt.planes((64, 640)), fmt.planes((128, 640))
    if any(large[k].shape != (2 * small[k].shape[0], *small[k].shape[1:]) for k in small):
        raise Refused(
            f"an embedding cannot be stored as {to_spec(fmt)['kind']}, whose rows are not stored apart: "
            "give integer, binary or ternary."
        )


def _float_type(kept: dict[str, PlaneSpec]) -> str:
    """The widest float type among the kept tensors: what transformers is to load the artifact in."""
    floats = {spec.dtype for spec in kept.values() if spec.dtype.is_floating_point}
    if torch.float32 in floats or not floats or len(floats) > 1:
        return "float32"
    return str(floats.pop()).removeprefix("torch.")


def block_weights(source: Source, structure: Structure) -> list[tuple[str, tuple[int, ...]]]:
    """Linears [R, C] and stacks of experts [E, R, C] of all blocks, by module path, in order of use."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for block in structure.blocks:
        found += [(f"{block.path}.{n}", tuple(source.shape(f"{block.path}.{n}.weight"))) for n in block.linears]
        found += [(f"{block.path}.{experts.name}", experts.shape) for experts in block.experts]
    return found


def _matrices(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(shape[-2], shape[-1])] * (shape[0] if len(shape) == 3 else 1)


def _experts(name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """What can have a format of its own: a matrix, or each expert of a stack."""
    if len(shape) == 2:
        return [(name, shape)]
    return [(expert_name(name, e), shape[1:]) for e in range(shape[0])]


def _version() -> str:
    from bitwright import __version__

    return __version__
