"""The modules of a model without its weights, filled and emptied one part at a time."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from bitwright.errors import BadInput, Refused

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from bitwright.models.source import Source

UNBUILDABLE = (KeyError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, StrictDataclassError)
"""What transformers raises at a config that makes no sense."""


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The causal language model of a config in eval mode: parameters on the meta device, computed buffers real.

    Attention is "sdpa" (same bits for any number of threads, no [T, T] matrix in memory); experts run "eager",
    one `F.linear(x, parameter[e])` each. `Refused` if transformers has no such model or leaves a buffer undefined.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise Refused(f"transformers knows no causal language model of type {config.model_type!r}.")
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            deepcopy(config),
            dtype=torch.float32,
            attn_implementation="sdpa" if _has_sdpa(config) else "eager",
            experts_implementation="eager",
        )
    _compute_buffers(model)
    return model.eval().requires_grad_(False)


def materialise(module: nn.Module, source: Source, prefix: str, dtype: torch.dtype = torch.float32) -> None:
    """Fills the meta parameters and saved buffers of one part of a skeleton.

    `prefix` is the path of `module` in the model ("" for the model itself). Values are copied, never views of the
    file, floating ones in `dtype`. Parameters tied inside `module` stay tied; one that the source lists under a name
    outside `module` stays on meta. `BadInput` names a tensor with NaN or infinite values.
    """
    known = set(source.names())
    path = f"{prefix}." if prefix else ""
    for names, old in _meta_or_real(module, meta=True):
        listed = [path + name for name in names if path + name in known]
        if listed:
            _put(module, names, old, _owned(source, listed[0], dtype))


def release(module: nn.Module) -> None:
    """Back to meta: frees every parameter and saved buffer; computed buffers such as rotary frequencies stay."""
    for names, old in _meta_or_real(module, meta=False):
        _put(module, names, old, old.detach().to("meta"))


def _owned(source: Source, name: str, dtype: torch.dtype) -> Tensor:
    """A finite copy that does not depend on the file."""
    stored = source.tensor(name)
    if not stored.is_floating_point():
        return stored.clone()
    value = stored.to(dtype, copy=True)
    if not value.isfinite().all():
        raise BadInput(f"the weight {name} of {source.name} holds NaN or infinite values.")
    return value


def _meta_or_real(module: nn.Module, meta: bool) -> list[tuple[list[str], Tensor]]:
    """Parameters and saved buffers on (or off) the meta device, tied ones once with all their names."""
    tied: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_meta == meta:
            tied.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(tied.values())


def _put(module: nn.Module, names: list[str], old: Tensor, value: Tensor) -> None:
    """Replaces a parameter or buffer under all its dotted names."""
    new = nn.Parameter(value, requires_grad=False) if isinstance(old, nn.Parameter) else value
    for name in names:
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, new)


def _has_sdpa(config: PretrainedConfig) -> bool:
    from transformers import AutoModelForCausalLM

    cls: Any = AutoModelForCausalLM._model_mapping[type(config)]
    return bool(cls._supports_sdpa)


@torch.no_grad()
def _compute_buffers(model: PreTrainedModel) -> None:
    """Gives buffers that no file holds (rotary frequencies, embedding scales) memory and their values.

    transformers computes them in the `_init_weights` of the nearest model around a module. It is run over two
    different fills: a buffer that still differs was not computed.
    """
    for path, module in model.named_modules():
        names = sorted(module._non_persistent_buffers_set & {k for k, v in module._buffers.items() if v is not None})
        if not names:
            continue
        results = [_computed(model, path, module, names, fill) for fill in (0, 1)]
        for name, first, second in zip(names, *results, strict=True):
            if not torch.equal(first, second):
                raise Refused(f"transformers leaves the buffer {path}.{name} of {model.config.model_type} undefined.")


def _computed(model: PreTrainedModel, path: str, module: nn.Module, names: list[str], fill: int) -> list[Tensor]:
    from transformers import PreTrainedModel

    for name in names:
        setattr(module, name, torch.full_like(module.get_buffer(name), fill, device="cpu"))
    owners = [m for p, m in model.named_modules() if isinstance(m, PreTrainedModel) and _within(path, p)]
    owners[-1]._init_weights(module)
    return [module.get_buffer(name) for name in names]


def _within(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(prefix + ".")
