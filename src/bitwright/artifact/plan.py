"""What an artifact holds, from formats and shapes alone: known exactly before any code is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from bitwright.artifact.header import DTYPE_NAMES
from bitwright.artifact.layout import KeptRow, PlanRow, Quantization, Totals, Weight
from bitwright.bits import Bits, total
from bitwright.errors import BadArtifact, BadInput, WorkFailed
from bitwright.protocols import Format, PlaneSpec
from bitwright.spec import from_spec

Part = Literal["block", "embedding", "head"]


def formats(quantization: Quantization) -> tuple[Format, ...]:
    """The formats as values; `BadArtifact` where a spec describes another kind of part."""
    found = tuple(from_spec(spec) for spec in quantization.formats)
    for spec, value in zip(quantization.formats, found, strict=True):
        if not isinstance(value, Format):
            raise BadArtifact(f"{spec.get('kind')!r} is listed as a format and is none: write the artifact again.")
    return found


@lru_cache(maxsize=4096)
def matrix_planes(fmt: Format, shape: tuple[int, int]) -> Mapping[str, PlaneSpec]:
    """`fmt.planes`, remembered: most matrices of a model are alike."""
    return MappingProxyType(fmt.planes(shape))


def planes(weight: Weight, fmt: Format) -> dict[str, PlaneSpec]:
    """Stored tensors of a weight by full name; experts lead with E."""
    lead, own = weight.shape[:-2], matrix_planes(fmt, weight.matrix)
    return {f"{weight.name}.{k}": PlaneSpec(p.dtype, lead + p.shape) if lead else p for k, p in own.items()}


def tensors(quantization: Quantization, kept: Mapping[str, PlaneSpec]) -> dict[str, PlaneSpec]:
    """Every tensor of the artifact: planes in order of use, then what stays as the source has it."""
    known = formats(quantization)
    found: dict[str, PlaneSpec] = {}
    for part in [*(planes(w, known[w.format]) for w in quantization.weights), kept]:
        if clash := found.keys() & part.keys():
            raise BadInput(f"two tensors would be called {min(clash)!r}: rename the module.")
        found |= part
    return found


def plan_rows(quantization: Quantization, parts: Mapping[str, Part]) -> tuple[PlanRow, ...]:
    """One row a weight with its exact bits; weights that `parts` does not name belong to blocks."""
    known = formats(quantization)
    rows = []
    for w in quantization.weights:
        fmt = known[w.format]
        bits = total([fmt.bits(w.matrix)] * w.experts)
        size = w.experts * sum(p.bytes for p in matrix_planes(fmt, w.matrix).values())
        if bits.total != 8 * size:
            raise WorkFailed(f"{w.name}: {w.shape} as {fmt} counts {bits.total} bits, but its planes have {8 * size}.")
        part = parts.get(w.name, "block")
        rows.append(
            PlanRow(name=w.name, part=part, shape=w.shape, format=w.format, bits=bits.named(), bytes=bits.bytes)
        )
    return tuple(rows)


def kept_rows(kept: Mapping[str, PlaneSpec]) -> tuple[KeptRow, ...]:
    """Rows of the tensors that are not quantized."""
    return tuple(KeptRow(name=k, dtype=DTYPE_NAMES[s.dtype], shape=s.shape) for k, s in kept.items())


def totals(rows: Sequence[PlanRow], kept: Mapping[str, PlaneSpec], file_bytes: int) -> Totals:
    """Sums over rows and files; what is neither plane nor kept tensor is header."""
    kept_bytes = sum(s.bytes for s in kept.values())
    return Totals(
        file_bytes=file_bytes,
        header_bytes=file_bytes - kept_bytes - sum(r.bytes for r in rows),
        kept_bytes=kept_bytes,
        block_weights=_block_weights(rows),
        stored_bits_per_weight=block_bits(rows),
    )


def block_bits(rows: Sequence[PlanRow]) -> float:
    """Stored bits a weight of the linears of the blocks, everything counted; 0 where there are none."""
    weights = _block_weights(rows)
    return total(Bits(**row.bits) for row in rows if row.part == "block").total / weights if weights else 0.0


def _block_weights(rows: Sequence[PlanRow]) -> int:
    return sum(Weight(name=r.name, format=r.format, shape=r.shape).count for r in rows if r.part == "block")
