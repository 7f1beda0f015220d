"""From a folder to an ordinary `nn.Module`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bitwright.errors import BadArtifact, foreign
from bitwright.models.skeleton import UNBUILDABLE, skeleton
from bitwright.protocols import Format
from bitwright.runtime.install import install, place
from bitwright.runtime.linear import Activations, Packed, QExperts, set_activations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedConfig, PreTrainedModel

    from bitwright.artifact.layout import Quantization
    from bitwright.artifact.read import Artifact


def load(path: str | Path, activations: Activations = "int8") -> PreTrainedModel:
    """The model of a bitwright folder, its weights packed and mapped, in eval mode.

    `activations` "int8" is what kernels compute; "float" multiplies by decoded weights.
    """
    from bitwright.artifact.read import open_artifact

    return load_artifact(open_artifact(Path(path)), activations)


def load_artifact(artifact: Artifact, activations: Activations = "int8") -> PreTrainedModel:
    """`load` of an opened folder."""
    from bitwright.runtime.pretrained import mark_quantized

    model = assemble(artifact.config, artifact.quantization, artifact.formats, artifact.tensor, artifact.kept)
    set_activations(model, activations)
    mark_quantized(model, artifact.quantization)
    _generation_config(model, artifact)
    return model


def load_float(model: str) -> PreTrainedModel:
    """The float model of a source (folder, GGUF file, packaged name), float32, in eval mode."""
    from bitwright.models.skeleton import materialise
    from bitwright.models.source import open_source

    source = open_source(model)
    module = skeleton(source.config)
    materialise(module, source, "")
    return module


def assemble(
    config: Mapping[str, Any],
    quantization: Quantization,
    formats: tuple[Format, ...],
    tensor: Callable[[str], Tensor],
    kept: tuple[str, ...],
) -> PreTrainedModel:
    """A model from its config and stored tensors, wherever those come from."""
    model = _skeleton(config)
    install(model, quantization, formats)
    for weight in quantization.weights:
        module = model.get_submodule(weight.name)
        assert isinstance(module, Packed | QExperts)
        planes = formats[weight.format].planes(weight.matrix)
        module.fill({role: tensor(f"{weight.name}.{role}") for role in planes})
    for name in kept:
        place(model, name, tensor(name))
    model.tie_weights()  # a head to an embedding that is no packed one
    left = [name for name, value in model.state_dict(keep_vars=True).items() if value.is_meta]
    if left:
        raise BadArtifact(f"the artifact holds no {left[0]} ({len(left)} tensors missing): write it again.")
    return model


def read_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """What transformers makes of an artifact's config.json; `BadArtifact` if that is nothing."""
    from transformers import AutoConfig

    own = {key: value for key, value in config.items() if key not in ("quantization_config", "model_type")}
    try:
        return AutoConfig.for_model(config["model_type"], **own)
    except UNBUILDABLE as error:
        raise not_a_model(error) from None


def _skeleton(config: Mapping[str, Any]) -> PreTrainedModel:
    try:
        return skeleton(read_config(config))
    except UNBUILDABLE as error:
        raise not_a_model(error) from None


def not_a_model(error: Exception) -> BadArtifact:
    """What to say of one of `UNBUILDABLE`."""
    return BadArtifact(f"config.json describes no model that can be built ({foreign(error)}): copy the artifact again.")


def _generation_config(model: PreTrainedModel, artifact: Artifact) -> None:
    from transformers import GenerationConfig

    if (artifact.path / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(artifact.path)
