"""A GGUF file as a source: dequantized one tensor at a time, named and laid out as transformers modules want it."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import BadInput, Refused, foreign
from bitwright.models.cache import cached_folder
from bitwright.models.folder import copy_companions, read_config, read_tokenizer
from bitwright.models.identity import file_digest
from bitwright.models.skeleton import skeleton

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

LAYOUT = 1  # version of what the cache holds


class GgufSource:
    """Lazy reader of a GGUF file. Fits `models.source.Source`.

    Config, tokenizer and the table of tensors are parsed once and kept in the cache folder under the hash of the
    file: parsing a vocabulary takes seconds. `notices` are licence texts to pass on. `Refused` for architectures that
    transformers cannot read, `BadInput` for broken files.
    """

    def __init__(self, path: Path, name: str, notices: Sequence[Path] = ()) -> None:
        self.name = name
        self._path, self._notices = path, notices
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise BadInput(f"{path} is no GGUF file: it does not start with the letters GGUF.")
        self._digest = file_digest(path)
        made_by = f"{LAYOUT}-{version('transformers')}"
        self._parsed = cached_folder(f"gguf/{self._digest}-{made_by}", lambda folder: _parse(path, folder))
        self.config: PretrainedConfig = read_config(self._parsed)
        table = json.loads((self._parsed / "tensors.json").read_text(encoding="utf-8"))
        self.licence: str | None = table["licence"]
        self._tensors: dict[str, dict[str, Any]] = table["tensors"]
        end = max(t["start"] + t["bytes"] for t in self._tensors.values())
        if end > path.stat().st_size:
            raise BadInput(f"{path} is truncated: its tensors end at byte {end}, the file has {path.stat().st_size}.")
        self._shapes = _shapes(skeleton(self.config))
        self._processor = _processor(table["architecture"], self.config)
        self._map: dict[str, str] = table["names"]
        self._stored = self._names_of_file()

    def names(self) -> tuple[str, ...]:
        """Every parameter and saved buffer, in order of the modules."""
        return tuple(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in the module."""
        return self._shapes[name]

    def tensor(self, name: str) -> Tensor:
        """One tensor, dequantized to float32."""
        shape = self._shapes[name]
        made = self._made(name, slice(None))
        if tuple(made.shape) != shape:
            raise BadInput(f"{self._path}: {name} has shape {tuple(made.shape)}, its config asks for {shape}.")
        return made

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Some rows [n, C] of a matrix by int64 `ids` [n]; dequantizes no others."""
        return self._made(name, ids.numpy())

    def digest(self) -> str:
        """SHA-256 of the file (sampled above 2 GiB)."""
        return self._digest

    def lineage(self) -> dict[str, object]:
        """What an artifact records of its source."""
        used = {key for keys in self._stored.values() for key in keys}
        unused = sorted(set(self._tensors) - used)
        return {
            "kind": "gguf",
            "name": self.name,
            "files": [{"name": self._path.name, "bytes": self._path.stat().st_size, "sha256": self._digest}],
            "stored_types": sorted({t["type"] for t in self._tensors.values()}),
            "digest": self._digest,
            "licence": self.licence,
            **({"unused_tensors": unused} if unused else {}),
        }

    def save_companions(self, folder: Path) -> None:
        """Writes tokenizer, chat template and generation config as Hugging Face files, copies licence texts."""
        copy_companions(self._parsed, folder)
        for notice in self._notices:
            (folder / notice.name).write_bytes(notice.read_bytes())

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the file."""
        return read_tokenizer(self._parsed)

    @cached_property
    def _data(self) -> np.ndarray:
        return np.memmap(self._path, mode="r").view(np.ndarray)

    def _names_of_file(self) -> dict[str, list[str]]:
        """Module name -> stored tensors it is made of; `BadInput` if one has none."""
        stored: dict[str, list[str]] = {}
        for key in self._tensors:
            name = self._map.get(key) or self._map.get(key.removesuffix(".weight"))
            if name is not None:
                stored.setdefault(name, []).append(key)
        for name in self._shapes:
            if name not in stored:
                raise BadInput(f"{self._path} lacks the tensor {name} of a {self.config.model_type} model.")
        return stored

    def _made(self, name: str, rows: Any) -> Tensor:
        """Dequantizes the parts of a parameter and lets transformers undo what GGUF did to them."""
        made: dict[str, Tensor] = {}
        for key in self._stored[name]:
            result = self._processor.process(
                weights=self._dequantized(key, rows),
                name=key,
                tensor_key_mapping=self._map,
                parsed_parameters={"tensors": made},
            )
            if result.name is not None:
                made[name] = torch.from_numpy(np.require(result.weights, np.float32, ["C", "W"]))
        return made[name]

    def _dequantized(self, key: str, rows: Any) -> np.ndarray:
        from gguf import GGMLQuantizationType, dequantize, quant_shape_to_byte_shape

        entry = self._tensors[key]
        kind = GGMLQuantizationType[entry["type"]]
        raw = self._data[entry["start"] : entry["start"] + entry["bytes"]]
        if entry["type"] in ("F32", "F16", "F64"):
            raw = raw.view({"F32": np.float32, "F16": np.float16, "F64": np.float64}[entry["type"]])
            return np.asarray(raw.reshape(entry["shape"])[rows], np.float32)
        blocks = raw.reshape(quant_shape_to_byte_shape(entry["shape"], kind))[rows]
        return np.asarray(dequantize(blocks, kind), np.float32)


def _processor(architecture: str, config: PretrainedConfig) -> Any:
    """What transformers does to the tensors of an architecture: permutations, norms that add one, experts."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    return TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters and saved buffers, tied ones once."""
    seen: set[int] = set()
    shapes = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            shapes[name] = tuple(tensor.shape)
        seen.add(id(tensor))
    return shapes


def _parse(path: Path, folder: Path) -> None:
    """Writes config, tokenizer and table of tensors of a GGUF file into a folder."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise Refused("reading GGUF files needs the gguf package: pip install 'bitwright[gguf]'.") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    config = _gguf_config(path)
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True).save_pretrained(folder)

    reader = GGUFReader(path)
    tensors = {
        t.name: {
            "shape": [int(n) for n in reversed(t.shape)],
            "type": t.tensor_type.name,
            "start": int(t.data_offset),
            "bytes": int(t.n_bytes),
        }
        for t in reader.tensors
    }
    fields = {key: reader.get_field(f"general.{key}") for key in ("architecture", "license")}
    values = {key: field.contents() if field else None for key, field in fields.items()}
    names = _module_names(config, _processor(str(values["architecture"]), config))
    table = {"architecture": values["architecture"], "licence": values["license"], "tensors": tensors, "names": names}
    (folder / "tensors.json").write_text(json.dumps(table, indent=1), encoding="utf-8")


def _module_names(config: PretrainedConfig, processor: Any) -> dict[str, str]:
    """Stored name -> module name; joined experts are listed without their ".weight"."""
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    model = skeleton(config)
    # transformers would walk every module for names that differ by a prefix: seconds, and rarely of use
    flat = SimpleNamespace(config=model.config, state_dict=model.state_dict, named_children=list)
    names: dict[str, str] = get_gguf_hf_weights_map(flat, processor)
    if not set(_shapes(model)) <= set(names.values()):
        names = get_gguf_hf_weights_map(model, processor)
    return names


def _gguf_config(path: Path) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except (ValueError, KeyError, IndexError, OSError, struct.error) as error:
        cut = isinstance(error, IndexError | struct.error)
        raise BadInput(f"{path} cannot be read: {'it is cut short' if cut else foreign(error)}.") from None
    return config
