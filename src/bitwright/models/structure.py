"""What a model is made of, found by running it without weights; nothing here knows a class name or a family."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.errors import Refused
from bitwright.models.trace import Trace, Use

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 16  # length of the run that shows the structure
MULTIPLIES = ("linear", "matmul", "rmatmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "einsum")


@dataclass(frozen=True)
class Experts:
    """A stack of expert matrices: one parameter [E, R, C] of which a slice at a time is a linear."""

    name: str  # inside the block: "mlp.experts.gate_up_proj"
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Block:
    """One of the repeated blocks."""

    path: str  # "model.layers.3"
    waves: tuple[tuple[str, ...], ...]  # linears that receive the very same input, in order of execution
    experts: tuple[Experts, ...]  # in order of execution
    kept: dict[str, str]  # every other parameter inside the block -> why it stays as it is

    @property
    def mixture(self) -> str | None:
        """Path of what runs the experts, inside the block."""
        return self.experts[0].name.rpartition(".")[0] if self.experts else None

    @property
    def router(self) -> str | None:
        """Name of the matrix [E, D] that chooses experts, inside the block; not the gate of a shared one."""
        beside = (self.mixture or "").rpartition(".")[0]
        found = (name for name, why in self.kept.items() if why == "router" and name.startswith(f"{beside}."))
        return next((name for name in found if "shared" not in name), None)

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears inside the block, in order of execution."""
        return tuple(name for wave in self.waves for name in wave)


@dataclass(frozen=True)
class Structure:
    """Parts of a causal language model by path. Every parameter is in exactly one of: a linear (its weight),
    experts, `kept` of a block, the token embedding, the head, `kept`."""

    blocks: tuple[Block, ...]
    embedding: str  # path of the token embedding
    head: str | None  # path of the linear that makes logits
    tied: bool  # embedding and head are one matrix
    kept: dict[str, str]  # other parameters outside the blocks, full names -> why
    arity: int | None = None  # a block returns a tuple of so many; None: a tensor
    unsupported: tuple[str, ...] = field(default=())  # matrices multiplied in a way that cannot be quantized; also kept


def infer(model: PreTrainedModel) -> Structure:
    """The structure of a skeleton (all parameters on meta).

    `Refused` names the piece that does not fit: no repeated blocks, blocks that are not a chain, matrices that are
    neither `nn.Linear` nor stacked experts and make up most of the blocks.
    """
    listing, blocks = _block_list(model)
    uses, chain = _run(model, blocks)
    names = [f"{listing}.{i}" for i in range(len(blocks))]
    arity = chain.check(names)

    found = [_block(model, name, [u for u in uses if u.parameter.startswith(name + ".")]) for name in names]
    embedding, head = _path(model, model.get_input_embeddings()), _path(model, model.get_output_embeddings())
    if embedding is None or not any(u.parameter == f"{embedding}.weight" and u.op == "embedding" for u in uses):
        raise Refused(f"{model.config.model_type}: the token embedding is not a look-up in one matrix.")
    inside = tuple(name + "." for name in names)
    own = {f"{embedding}.weight", f"{head}.weight"}
    kept = {k: _why(k, p, uses) for k, p in _parameters(model).items() if not k.startswith(inside) and k not in own}
    unsupported = tuple(f"{b.path}.{k}" for b in found for k, why in b.kept.items() if why.startswith("multiplied"))
    _refuse_if_most(model, found, unsupported)
    tied = head is not None and model.get_submodule(head).weight is model.get_submodule(embedding).weight
    return Structure(tuple(found), embedding, head, tied, kept, arity, unsupported)


def _block_list(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The outermost ModuleList with the most parameters."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    outer = {k: m for k, m in lists.items() if not any(k.startswith(other + ".") for other in lists)}
    if not outer:
        raise Refused("the model has no list of repeated blocks.")
    name = max(outer, key=lambda k: sum(p.numel() for p in outer[k].parameters()))
    return name, list(outer[name])


@dataclass
class _Chain:
    """What went into and out of the blocks."""

    inputs: list[tuple[int, Tensor | None]] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def check(self, names: list[str]) -> int | None:
        """Arity of the outputs; `Refused` unless each block runs once and takes what the one before returned."""
        if [index for index, _ in self.inputs] != list(range(len(names))):
            raise Refused(f"the blocks {names[0]} to {names[-1]} do not run once each, one after the other.")
        states = [out[0] if isinstance(out, tuple) else out for out in self.outputs]
        for name, before, (_, after) in zip(names[1:], states, self.inputs[1:], strict=False):
            if before is not after:
                raise Refused(f"the block {name} does not take the output of the block before it.")
        return len(self.outputs[0]) if isinstance(self.outputs[0], tuple) else None


@torch.no_grad()
def _run(model: PreTrainedModel, blocks: list[nn.Module]) -> tuple[list[Use], _Chain]:
    chain = _Chain()
    handles = []
    for i, block in enumerate(blocks):

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], i: int = i) -> None:
            chain.inputs.append((i, next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)))

        def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            chain.outputs.append(output)

        handles += [block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)]
    try:
        with Trace(model) as trace:
            model(input_ids=torch.arange(TOKENS)[None] % model.config.get_text_config().vocab_size, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return trace.uses, chain


def _block(model: nn.Module, path: str, uses: list[Use]) -> Block:
    inside = f"{path}."
    parameters = {k.removeprefix(inside): p for k, p in _parameters(model).items() if k.startswith(inside)}
    uses = [replace(u, parameter=u.parameter.removeprefix(inside)) for u in uses]
    stacks = {u.parameter: tuple(parameters[u.parameter].shape) for u in uses if u.part and u.op == "linear"}
    experts = tuple(Experts(name, (s[0], s[1], s[2])) for name, s in stacks.items() if len(s) == 3)
    routers = {name for e in experts for name, p in parameters.items() if _routes(name, p, e)}

    waves: dict[int, list[str]] = {}
    taken = {e.name for e in experts}
    for use in uses:
        if use.parameter not in taken | routers and _is_linear(model.get_submodule(path), use):
            taken.add(use.parameter)
            waves.setdefault(id(use.input), []).append(use.parameter.removesuffix(".weight"))
    kept = {k: "router" if k in routers else _why(k, p, uses) for k, p in parameters.items() if k not in taken}
    return Block(path, tuple(map(tuple, waves.values())), experts, kept)


def _routes(name: str, parameter: Tensor, experts: Experts) -> bool:
    """Whether a matrix beside the experts has one output an expert, or one in all (the gate of a shared expert)."""
    beside = experts.name.split(".")[:-2]
    return name.split(".")[: len(beside)] == beside and parameter.dim() == 2 and len(parameter) in (1, experts.shape[0])


def _is_linear(block: nn.Module, use: Use) -> bool:
    """Whether the parameter is the weight of an `nn.Linear` and was used as one, by F.linear or x @ W.T."""
    path, _, leaf = use.parameter.rpartition(".")
    module = block.get_submodule(path)
    fits = isinstance(module, nn.Linear) and use.input.shape[-1] == module.in_features
    return fits and leaf == "weight" and not use.part and use.op in ("linear", "matmul")


def _why(name: str, parameter: Tensor, uses: list[Use]) -> str:
    """Why a parameter that is no linear, expert, router, embedding or head stays as it is."""
    ops = [use.op for use in uses if use.parameter == name]
    if not ops:
        return "not used in a forward pass"
    if parameter.dim() > 1 and ops[0] in MULTIPLIES:
        return f"multiplied by {ops[0]}, but no nn.Linear"
    return "vector" if parameter.dim() < 2 else f"used by {ops[0]}"


def _refuse_if_most(model: PreTrainedModel, blocks: list[Block], unsupported: tuple[str, ...]) -> None:
    sizes = {k: p.numel() for k, p in _parameters(model).items()}
    largest = max(unsupported, key=lambda name: sizes[name], default="none at all")
    fit = sum(sizes[f"{b.path}.{k}.weight"] for b in blocks for k in b.linears)
    fit += sum(sizes[f"{b.path}.{e.name}"] for b in blocks for e in b.experts)
    if fit <= sum(sizes[k] for k in unsupported):
        raise Refused(
            f"{model.config.model_type} keeps most of its weights in matrices that are neither nn.Linear nor stacked "
            f"experts of linears, such as {largest}; they cannot be quantized."
        )


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers, tied ones once, as a source lists them."""
    tied: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied.setdefault(id(tensor), (name, tensor))
    return dict(tied.values())


def _path(model: nn.Module, module: nn.Module | None) -> str | None:
    return next((name for name, m in model.named_modules() if m is module), None)
