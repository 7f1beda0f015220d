"""Where float weights come from: one tensor at a time, whatever the file looks like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from bitwright.errors import BadInput, Refused, UnknownName

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class Source(Protocol):
    """A float model on disk. Names are those of the transformers modules; a tied tensor is listed once."""

    name: str  # what the user typed
    config: PretrainedConfig
    licence: str | None  # as the model card says

    def names(self) -> tuple[str, ...]:
        """Every parameter and saved buffer, in order of use."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One tensor: stored dtype (safetensors) or float32 (GGUF). It may be a read-only view of the mapped file:
        never write into it."""
        ...

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Some rows [n, C] of a matrix by int64 `ids` [n]; reads no others."""
        ...

    def digest(self) -> str:
        """Identity of the weights and config: SHA-256 (see `models/identity.py`)."""
        ...

    def lineage(self) -> dict[str, object]:
        """What an artifact records of its source: kind, files with sizes and hashes, digest, licence."""
        ...

    def save_companions(self, folder: Path) -> None:
        """Copies tokenizer, chat template, generation config and licence texts; not config.json."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the model."""
        ...


def open_source(model: str) -> Source:
    """The float model of a Hugging Face folder, a GGUF file or a packaged name ("smollm2", "gemma3-270m").

    Weights are not read. `BadInput` says what was looked for, `Refused` what cannot be a source.
    """
    from bitwright.models.folder import FolderSource
    from bitwright.models.gguf_file import GgufSource
    from bitwright.models.packaged import PACKAGED, find

    path = Path(model).expanduser()
    if path.is_dir():
        return FolderSource(path, model)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return GgufSource(path, model)
        raise BadInput(f"{model} is a file but no .gguf file; give a model folder, a GGUF file or a known name.")
    if model in PACKAGED:
        return find(model)
    if "/" in model or path.suffix:
        raise BadInput(
            f"there is no folder or file {model}; models are not downloaded: give a folder with config.json and "
            f"safetensors, a GGUF file, or one of the names {', '.join(PACKAGED)}."
        )
    raise UnknownName("model folder, file or packaged model", model, PACKAGED)


def refuse_artifact(folder: Path) -> None:
    """`Refused` if the folder holds a model that bitwright wrote."""
    if (folder / "bitwright.json").exists():
        raise Refused(f"{folder} was already quantized by bitwright; give the float model that it was made from.")
