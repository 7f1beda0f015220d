"""A Hugging Face model folder as a source: config.json and safetensors, sharded or not."""

from __future__ import annotations

import json
import re
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from bitwright.errors import BadInput, Refused, foreign
from bitwright.models.conversion import Conversion
from bitwright.models.identity import file_digest, joint_digest
from bitwright.models.mapped import MappedFile
from bitwright.models.skeleton import UNBUILDABLE, skeleton
from bitwright.models.source import refuse_artifact

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "*chat_template*", "generation_config.json",
    "vocab.*", "merges.txt", "spiece.model", "sentencepiece*", "*.tiktoken", "LICEN[SC]E*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


class FolderSource:
    """Lazy reader of a model folder. Fits `models.source.Source`.

    Experts that the file holds one by one are joined into the parameters of transformers v5, one parameter at a
    time, by transformers' own conversion rules.
    """

    def __init__(self, folder: Path, name: str) -> None:
        refuse_artifact(folder)
        self.name = name
        self._folder = folder
        self.config = read_config(folder)
        self._files = [MappedFile(path) for path in _weight_files(folder)]
        self.licence = _licence(folder)
        self._conversion = self._convert()

    def names(self) -> tuple[str, ...]:
        """Every parameter and saved buffer, in order of the modules."""
        return self._conversion.names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self._conversion.shape(name)

    def tensor(self, name: str) -> Tensor:
        """A read-only view of the mapped file, or a new tensor where the file holds it in parts."""
        return self._conversion.tensor(name)

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Some rows [n, C] of a matrix by int64 `ids` [n]; reads no others."""
        return self.tensor(name)[ids]

    def digest(self) -> str:
        """SHA-256 over the hashes of config.json and all weight files."""
        return joint_digest([(name, digest) for name, _, digest in self._hashes])

    def lineage(self) -> dict[str, object]:
        """What an artifact records of its source."""
        files = [{"name": name, "bytes": size, "sha256": digest} for name, size, digest in self._hashes]
        unused = {"unused_tensors": list(self._conversion.unused)} if self._conversion.unused else {}
        return {
            "kind": "safetensors",
            "name": self.name,
            "files": files,
            "digest": self.digest(),
            "licence": self.licence,
            **unused,
        }

    def save_companions(self, folder: Path) -> None:
        """Copies tokenizer, chat template, generation config and licence texts."""
        copy_companions(self._folder, folder)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the folder; `BadInput` if it has none."""
        return read_tokenizer(self._folder)

    @cached_property
    def _hashes(self) -> list[tuple[str, int, str]]:
        paths = [self._folder / "config.json", *(file.path for file in self._files)]
        return [(path.name, path.stat().st_size, file_digest(path)) for path in paths]

    def _convert(self) -> Conversion:
        stored = {name: file for file in self._files for name in file.entries}
        conversion = Conversion(self._skeleton(), stored, str(self._folder))
        if conversion.differ_though_tied():
            self.config.tie_word_embeddings = False  # as transformers does: the file has two matrices, so there are two
            conversion = Conversion(self._skeleton(), stored, str(self._folder))
        return conversion

    def _skeleton(self) -> PreTrainedModel:
        try:
            return skeleton(self.config)
        except UNBUILDABLE as error:
            raise BadInput(f"{self._folder / 'config.json'} describes no model: {foreign(error)}.") from None


def read_config(folder: Path) -> PretrainedConfig:
    """The transformers config of a folder; `Refused` for quantized models and for code from the hub."""
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.exists():
        what = "is empty" if not any(folder.iterdir()) else "has no config.json"
        raise BadInput(f"the folder {folder} {what}; a model folder holds config.json and safetensors files.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        kind = fields["model_type"]
    except OSError as error:
        raise BadInput(f"cannot read {path}: {(error.strerror or str(error)).lower()}.") from None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path} is not the config of a transformers model: it is no JSON with a model_type.") from None
    method = (fields.get("quantization_config") or {}).get("quant_method")
    if method:
        raise Refused(f"{folder} is already quantized ({method}); give the float model that it was made from.")
    if "auto_map" in fields:
        raise Refused(f"{folder} brings its own model code ({kind}), which bitwright does not run.")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (*UNBUILDABLE, OSError) as error:
        raise BadInput(f"{path} is not usable by transformers: {foreign(error)}.") from None


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in a folder; `BadInput` if there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (*UNBUILDABLE, OSError) as error:
        raise BadInput(f"{folder} has no usable tokenizer: {foreign(error)}.") from None
    return tokenizer


def copy_companions(source: Path, target: Path) -> None:
    """Copies the files that belong to a model beside weights and config."""
    for pattern in COMPANIONS:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{index} is not a safetensors index: it is no JSON with a weight_map.") from None
        missing = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
        if missing:
            raise BadInput(f"{folder} lacks {missing[0]}, one of the {len(shards)} files that its index names.")
        return [folder / shard for shard in shards]
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        raise Refused(
            f"{folder} holds only pickled weights ({pickles[0]}), which can run code when opened; convert them to "
            f"safetensors first (transformers: from_pretrained, then save_pretrained)."
        )
    raise BadInput(f"the folder {folder} has no model.safetensors and no model.safetensors.index.json.")


def _licence(folder: Path) -> str | None:
    card = folder / "README.md"
    if not card.exists():
        return None
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    named = re.search(r"^license:\s*[\"']?([\w.+-]+)", front.group(1), re.MULTILINE) if front else None
    return named.group(1) if named else None
