"""What a command is pointed at: a folder that bitwright wrote, or a float model."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.errors import BadInput, BitwrightError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bitwright.artifact.layout import Calibration, Manifest
    from bitwright.artifact.read import Artifact
    from bitwright.models.source import Source
    from bitwright.runtime.generate import EngineChoice, Generator
    from bitwright.runtime.linear import Activations

FLOAT16 = 2  # bytes a weight by which a float model that was stored otherwise is counted


@dataclass(frozen=True)
class Subject:
    """A model that may be measured; nothing heavy happens before `speaker`."""

    name: str
    packed: bool
    file_bytes: int  # of a float model: its parameters at 16 bits
    stored_bits: float | None  # a weight in the blocks; None if the folder has lost its manifest
    fingerprint: str | None  # weights and arithmetic
    positions: int | None  # longest input
    vocabulary: int | None  # tokens that it gives logits for
    engine: str  # "native" or "torch"
    speaker: Callable[[], Generator]
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    parent: tuple[str, str] | None  # name and digest of the float model it was made from
    seen: dict[str, Calibration]  # what was done with it ("calibrated", "tuned") -> on which text
    resize: Callable[[int | None], None] | None = None  # use so many bytes of its file; only with a budget


def open_subject(
    path: str,
    activations: Activations = "int8",
    engine: EngineChoice = "auto",
    budget: int | None = None,
    skip: bool = False,
) -> Subject:
    """A bitwright folder or a float source, checked but not loaded. Float models always run in torch.

    With a `budget` only so many bytes of the folder's weight file are read, now. With `skip`, tokens that hardly need
    an expert do without it.
    """
    if is_packed(Path(path)):
        if budget is not None:
            if skip:
                raise BadInput("files in blocks have no experts: leave out --skip-experts or --budget.")
            return _elastic(Path(path), path, activations, engine, budget)
        return _packed(Path(path), path, activations, engine, skip)
    from bitwright.models.source import open_source

    source = open_source(path)
    if skip:
        raise BadInput(f"{path} is a float model without thresholds of experts: leave out --skip-experts.")
    if budget is not None:
        raise BadInput(f"{path} is a float model, which is used whole: leave out --budget.")
    return _float(source)


def is_packed(path: Path) -> bool:
    """Whether the folder says that bitwright wrote it."""
    if (path / "bitwright.json").exists():
        return True
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    described = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(described, dict) and described.get("quant_method") == "bitwright"


def parent_of(subject: Subject) -> tuple[Subject | None, str]:
    """The float model a packed one was made from, if it is here and unchanged; and a sentence that says so."""
    from bitwright.models.source import open_source

    if subject.parent is None:
        return None, "nothing to compare with: this is a float model, or its origin is not recorded"
    name, digest = subject.parent
    try:
        source = open_source(name)
    except BitwrightError as error:
        return None, f"not compared with its float model {name}: {error}"
    if source.digest() != digest:
        return None, f"not compared with its float model: {name} has other weights now than when it was quantized"
    return _float(source), f"compared with {name}, the float model it was made from"


def _packed(path: Path, name: str, activations: Activations, choice: EngineChoice, skip: bool) -> Subject:
    from bitwright.artifact.read import open_artifact
    from bitwright.runtime.generate import generator, open_generator

    artifact = open_artifact(path)
    manifest = artifact.manifest
    bits = None if manifest is None else manifest.totals.stored_bits_per_weight

    def speak() -> Generator:
        if not skip:
            return open_generator(artifact, activations, choice)
        from bitwright.runtime.load import load_artifact
        from bitwright.runtime.skipping import Skipping

        model = load_artifact(artifact, activations)
        Skipping(model, {} if manifest is None else manifest.skipping)
        return generator(model, choice)

    found = _of_artifact(artifact, name, activations, choice, artifact.file_bytes(), bits, cache(speak))
    return replace(found, fingerprint=f"{found.fingerprint}-skipping") if skip and found.fingerprint else found


def _elastic(path: Path, name: str, activations: Activations, choice: EngineChoice, budget: int) -> Subject:
    from bitwright.runtime.describe import loaded_bits
    from bitwright.runtime.elastic import ElasticModel

    model = ElasticModel(path, budget, activations, choice)
    prefix = model.prefix
    found = _of_artifact(prefix.artifact, name, activations, choice, model.bytes, loaded_bits(prefix), model.generator)
    return replace(found, resize=model.resize)


def _of_artifact(
    artifact: Artifact,
    name: str,
    activations: Activations,
    choice: EngineChoice,
    used: int,
    bits: float | None,
    speaker: Callable[[], Generator],
) -> Subject:
    """`used` bytes of an artifact at so many bits a weight."""
    from bitwright.models.folder import read_tokenizer
    from bitwright.runtime.generate import why_torch
    from bitwright.runtime.load import read_config
    from bitwright.spec import fingerprint

    manifest = artifact.manifest
    hashes = None if manifest is None else [row.sha256 for row in manifest.files if row.name.endswith(".safetensors")]
    part = {} if used == artifact.file_bytes() else {"bytes": used}
    lineage = {} if manifest is None else manifest.lineage
    known = isinstance(lineage.get("name"), str) and isinstance(lineage.get("digest"), str)
    gc.freeze()  # what imports made is never garbage: a collection that walks through it would take a fifth of a second
    engine = "native" if why_torch(read_config(artifact.config), set(artifact.formats), choice) is None else "torch"
    arithmetic = {"activations": activations, "engine": engine}
    return Subject(
        name=name,
        packed=True,
        file_bytes=used,
        stored_bits=bits,
        fingerprint=None if hashes is None else fingerprint({"files": hashes, **part, **arithmetic}),
        positions=_size(artifact.config, "max_position_embeddings"),
        vocabulary=_size(artifact.config, "vocab_size"),
        engine=engine,
        speaker=speaker,
        tokenizer=cache(lambda: read_tokenizer(artifact.path)),
        parent=(str(lineage["name"]), str(lineage["digest"])) if known else None,
        seen=_seen(manifest),
    )


def _seen(manifest: Manifest | None) -> dict[str, Calibration]:
    found: dict[str, Calibration] = {}
    if manifest is not None and manifest.calibration is not None:
        found["calibrated"] = manifest.calibration
    if manifest is not None and manifest.tuning is not None:
        found["tuned"] = manifest.tuning.data
    return found


def _float(source: Source) -> Subject:
    from bitwright.runtime.generate import generator
    from bitwright.runtime.load import load_float

    config = source.config.to_dict()
    return Subject(
        name=source.name,
        packed=False,
        file_bytes=FLOAT16 * sum(prod(source.shape(name)) for name in source.names()),
        stored_bits=8.0 * FLOAT16,
        fingerprint=f"float32-{source.digest()}",
        positions=_size(config, "max_position_embeddings"),
        vocabulary=_size(config, "vocab_size"),
        engine="torch",
        speaker=cache(lambda: generator(load_float(source.name))),
        tokenizer=cache(source.tokenizer),
        parent=None,
        seen={},
    )


def _size(config: Any, name: str) -> int | None:
    text = config.get("text_config") or config
    found = text.get(name)
    return found if isinstance(found, int) else None
