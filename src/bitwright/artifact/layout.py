"""What the JSON files of an artifact folder hold; `docs/format.md` is the specification."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from bitwright.errors import BadArtifact

VERSION = 2
READABLE = (1, 2)
CHANGED = {"trellis", "rotated"}  # kinds that version 2 decodes otherwise than version 1 (docs/format.md)
METHOD = "bitwright"
CONFIG = "config.json"
GENERATION = "generation_config.json"
MANIFEST = "bitwright.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CARD = "README.md"
JSON_LIMIT = 64 << 20  # bytes; a table of 100 000 tensors needs a sixth of it
LARGEST = (1 << 20, 1 << 24, 1 << 16)  # columns, rows, experts: far above any model, so that checks stay quick

Count = Field(ge=0)
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class Strict(BaseModel):
    """A frozen record without conversions and without unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Weight(Strict):
    """One quantized weight: module path, index into `formats`, shape [R, C], or [E, R, C] of stacked experts."""

    name: str = Field(min_length=1)
    format: int = Count
    shape: tuple[int, ...] = Field(min_length=2, max_length=3)

    @property
    def matrix(self) -> tuple[int, int]:
        """[R, C] of the weight or of each expert."""
        return self.shape[-2], self.shape[-1]

    @property
    def count(self) -> int:
        """Number of weights in it."""
        return self.experts * self.matrix[0] * self.matrix[1]

    @property
    def experts(self) -> int:
        """Matrices in the stack, 1 where there is none."""
        return self.shape[0] if len(self.shape) == 3 else 1


def expert_name(stack: str, expert: int) -> str:
    """The weight of one expert, of a stack whose experts have formats of their own."""
    return f"{stack}.expert{expert}"


def expert_of(name: str) -> tuple[str, int] | None:
    """Stack and number of an expert with a format of its own; None for other weights."""
    found = re.fullmatch(r"(.+)\.expert(\d{1,5})", name)
    return None if found is None else (found[1], int(found[2]))


class Quantization(Strict):
    """`quantization_config` of config.json: all that is needed to decode. `weights` is in order of use."""

    quant_method: Literal["bitwright"] = "bitwright"
    version: int = VERSION
    formats: tuple[dict[str, JsonValue], ...]
    weights: tuple[Weight, ...]
    tied: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Quantization:
        names = {w.name for w in self.weights}
        if len(names) < len(self.weights):
            raise ValueError("weights name one module twice")
        for w in self.weights:
            if w.format >= len(self.formats):
                raise ValueError(f"{w.name!r} has format {w.format}, but there are {len(self.formats)}")
            if not all(1 <= n <= most for n, most in zip(w.shape[::-1], LARGEST, strict=False)):
                raise ValueError(f"{w.name!r} has the impossible shape {list(w.shape)}")
        if any(a in names for a, _ in self.tied):
            raise ValueError("a tied module is listed as a weight of its own")
        return self


class FileRow(Strict):
    """One file of the folder."""

    name: str
    bytes: int = Count
    sha256: str = Sha256


class PlanRow(Strict):
    """One quantized weight and what its stored bits are spent on."""

    name: str
    part: Literal["block", "embedding", "head"]
    shape: tuple[int, ...]
    format: int
    bits: dict[str, int]
    bytes: int


class KeptRow(Strict):
    """One tensor stored as the source has it; `dtype` in safetensors' spelling."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class RecipeRow(Strict):
    """The recipe by name, the settings that were asked for, and the parts they became."""

    name: str
    settings: dict[str, JsonValue] = {}
    spec: dict[str, JsonValue] = {}


class Calibration(Strict):
    """The text that the statistics were measured on; `runs` are hashes by which other texts are kept apart from it."""

    data: str
    sha256: str = Sha256
    tokens: int = Count
    runs: tuple[str, ...] = ()


class Totals(Strict):
    """Sums over the artifact. `stored_bits_per_weight` covers the linears of the blocks, padding included."""

    file_bytes: int = Count  # all safetensors files
    header_bytes: int = Count  # of these, headers with their padding
    kept_bytes: int = Count  # of these, tensors that were not quantized
    block_weights: int = Count
    stored_bits_per_weight: float


class TuningRow(Strict):
    """What an artifact was tuned from and on; losses are mean divergences from the float model, in nats a token."""

    base: str = Sha256  # of the weight files of the artifact before
    data: Calibration
    learning: dict[str, JsonValue]
    products: str  # type of the factors of matrix products
    steps: int = Count
    tokens: int = Count  # seen in all steps
    before: float  # on sequences that were not learned from
    after: float


class Point(Strict):
    """What the first `bytes` of the weight file lose: mean KL divergence from the float model, in nats a token."""

    bytes: int = Count
    kl: float


class ElasticRow(Strict):
    """How good every beginning of the weight file is, measured on the first `tokens` of the calibration text."""

    tokens: int = Count
    curve: tuple[Point, ...]


class Origin(Strict):
    """Where an artifact comes from: everything that decides its bytes. `lineage` describes the source model;
    the model card uses its keys "name" and "licence"."""

    bitwright: str
    recipe: RecipeRow
    calibration: Calibration | None = None
    tuning: TuningRow | None = None
    lineage: dict[str, JsonValue] = {}
    seeds: dict[str, int] = {}
    fingerprint: str


class Manifest(Origin):
    """bitwright.json. `verification` is filled after the files were reopened. No times: equal runs, equal bytes."""

    version: int = VERSION
    plan: tuple[PlanRow, ...]
    kept: tuple[KeptRow, ...]
    totals: Totals
    files: tuple[FileRow, ...]
    elastic: ElasticRow | None = None
    skipping: dict[str, float] = {}  # path of what runs experts -> median ratio of second to first routing weight
    verification: dict[str, JsonValue] | None = None


class Index(Strict):
    """model.safetensors.index.json: which shard holds which tensor."""

    metadata: dict[str, JsonValue] = {}
    weight_map: dict[str, str]


Model = TypeVar("Model", bound=Strict)


def json_text(data: Any) -> str:
    """Canonical JSON for people: sorted keys, two spaces, ASCII, one final newline."""
    return json.dumps(data, sort_keys=True, indent=2) + "\n"


def parse_json(raw: bytes, where: str) -> Any:
    """JSON from an untrusted file: no duplicate keys, no endless nesting; `BadArtifact` says where."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("one key appears twice in an object")
        return found

    try:
        return json.loads(raw.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadArtifact(f"{where} is not valid JSON ({error}): copy or write the artifact again.") from None


def parse(model: type[Model], data: Any, where: str) -> Model:
    """A record from JSON data; checks the version first, so that newer files get a clear answer."""
    if "version" in model.model_fields and isinstance(data, dict):
        version = data.get("version")
        if type(version) is not int or version not in READABLE:
            raise BadArtifact(
                f"{where} is of version {version!r}, but this bitwright reads versions 1 and 2: "
                "use the release of bitwright that wrote it, or write the artifact again."
            )
        if version == 1 and CHANGED & set(_kinds(data.get("formats"))):
            raise BadArtifact(
                f"{where} is of version 1 and has trellis codes or rotated inputs, which are decoded otherwise since "
                "version 2: write the artifact again."
            )
    return _validated(lambda: model.model_validate_json(json.dumps(data, allow_nan=False)), where)


def _kinds(data: Any) -> Iterator[str]:
    """Every kind of part that JSON data names, at any depth."""
    left = [data]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            if isinstance(kind := item.get("kind"), str):
                yield kind
            left.extend(item.values())
        if isinstance(item, list):
            left.extend(item)


def _validated(read: Callable[[], Model], where: str) -> Model:
    try:
        return read()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        problem = f"{place}: {first['msg']}" if place else first["msg"]
    except (ValueError, RecursionError) as error:
        problem = str(error)
    raise BadArtifact(f"{where} cannot be used ({problem}): copy or write the artifact again.")
