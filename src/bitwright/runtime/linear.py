"""Modules that compute from packed planes: linear layers, embeddings, tied heads, stacks of experts."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitwright.mixing import Mixer
from bitwright.protocols import Adaptive, Format, Planes, QTensor, Term
from bitwright.runtime import native
from bitwright.runtime.reference import integer_matmul

Activations = Literal["int8", "float"]
STRIP = 4096  # rows decoded at a time: bounds memory, large enough for full matrix-product speed


class Packed(nn.Module):
    """A weight [R, C] as named buffers, one a plane. Buffers keep their types whatever `.to(dtype)` asks."""

    def __init__(self, fmt: Format, shape: tuple[int, int]) -> None:
        super().__init__()
        self.format = fmt
        self.shape = shape
        for name, spec in fmt.planes(shape).items():
            self.register_buffer(name, torch.empty(spec.shape, dtype=spec.dtype))
        self._content = object()

    @property
    def content(self) -> object:
        """Another object whenever the planes were filled, loaded or moved: what was made of them is then stale."""
        return self._content

    @property
    def planes(self) -> Planes:
        """The stored planes."""
        return {name: self._buffers[name] for name in self.format.planes(self.shape)}  # type: ignore[misc]

    @property
    def qtensor(self) -> QTensor:
        """The weight as a value."""
        return QTensor(self.format, self.shape, self.planes)

    def fill(self, planes: Planes) -> None:
        """Take these planes as they are, without a copy."""
        for name in self.format.planes(self.shape):
            self._buffers[name] = planes[name]
        self._content = object()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._content = object()

    def terms(self) -> tuple[Term, ...]:
        """What kernels compute."""
        return self.format.terms(self.planes, self.shape)

    def _apply(self, fn: Any, recurse: bool = True) -> Packed:
        # Casting a model to another float type must not touch stored scales; moving it to meta or back may.
        probe = fn(torch.empty(0, dtype=torch.uint8, device=self._buffers["weight"].device))  # type: ignore[union-attr]
        if probe.device != self._buffers["weight"].device:  # type: ignore[union-attr]
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            self._content = object()
        return self

    def extra_repr(self) -> str:
        """Shape and format."""
        return f"{self.shape[0]}x{self.shape[1]}, {self.format}"


class QLinear(Packed):
    """y = x W^T + b from packed W; each token mixes an adaptive format's factors, before and behind the product.

    `activations` "int8" quantizes x per token and group, as kernels do; "float" multiplies by decoded weights.
    """

    def __init__(self, fmt: Format, shape: tuple[int, int], bias: bool = False) -> None:
        super().__init__(fmt, shape)
        self.in_features, self.out_features = shape[1], shape[0]
        self.activations: Activations = "int8"
        self.bias = nn.Parameter(torch.zeros(shape[0]), requires_grad=False) if bias else None
        self._forget()

    def _forget(self) -> None:
        """Drop what was made of planes that are no longer there."""
        self._kernel: native.NativeMatrix | None = None
        self._mixer: Mixer | None = None
        self._made_of: object = None

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles make kernels of their own.
        return {**self.__dict__, "_kernel": None, "_mixer": None}

    @property
    def path(self) -> str:
        """Which code multiplies, and why."""
        if self.activations == "float":
            return "torch, decoded strips: float activations"
        return f"{native.why()}, scales mixed in torch" if isinstance(self.format, Adaptive) else native.why()

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., R]."""
        if self._made_of is not self.content:
            self._forget()
            self._made_of = self.content
        flat = x.reshape(-1, self.shape[1]).float()
        if isinstance(self.format, Adaptive):
            before, behind = self._factors(self.format, flat)
            y = self._product(flat * before) * behind
        else:
            y = self._product(flat)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.shape[0]).to(x.dtype)

    def _factors(self, fmt: Adaptive, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._mixer is None:
            self._mixer = fmt.stored_mixer(self.planes, self.shape)
        return self._mixer.factors(x)

    def _product(self, x: Tensor) -> Tensor:
        return self._integer(x) if self.activations == "int8" else self._float(x)

    def _integer(self, x: Tensor) -> Tensor:
        if native.available()[0]:
            if self._kernel is None:
                self._kernel = native.native_matrix(self.terms(), self.shape, None)
            return self._kernel.matmul(x)
        group = self.terms()[0].activation_group
        return integer_matmul(x, self.format.operands(self.planes, self.shape), group)

    def _float(self, x: Tensor) -> Tensor:
        if self.shape[0] <= STRIP:
            return x @ self.qtensor.dequantize().t()
        out = x.new_empty(x.shape[0], self.shape[0])
        for start in range(0, self.shape[0], STRIP):
            ids = torch.arange(start, min(start + STRIP, self.shape[0]))
            out[:, ids] = x @ self.format.rows(self.planes, ids, self.shape).t()
        return out


class QEmbedding(Packed):
    """Rows of a packed table, decoded at look-up; `scale` is a constant some models multiply by."""

    def __init__(self, fmt: Format, shape: tuple[int, int], scale: float = 1.0) -> None:
        super().__init__(fmt, shape)
        self.num_embeddings, self.embedding_dim = shape
        self.scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        """Integers [...] -> float32 [..., C]."""
        rows = self.format.rows(self.planes, ids.reshape(-1), self.shape)
        return rows.view(*ids.shape, self.shape[1]) * self.scale


class TiedHead(QLinear):
    """A head that multiplies by the table of an embedding and stores nothing itself."""

    def __init__(self, table: QEmbedding) -> None:
        nn.Module.__init__(self)
        # Not registered: the planes belong to the embedding, and are saved and counted there once.
        object.__setattr__(self, "_table", table)
        self.format, self.shape = table.format, table.shape
        self.in_features, self.out_features = table.shape[1], table.shape[0]
        self.activations = "int8"
        self.bias = None
        self._forget()

    @property
    def content(self) -> object:
        """That of the embedding."""
        table = self.__dict__["_table"]
        assert isinstance(table, QEmbedding)
        return table.content

    @property
    def planes(self) -> Planes:
        """The embedding's planes."""
        table = self.__dict__["_table"]
        assert isinstance(table, QEmbedding)
        return table.planes

    @property
    def weight(self) -> Tensor:
        """The embedding's codes, where other code looks for a weight."""
        return self.planes["weight"]

    def _apply(self, fn: Any, recurse: bool = True) -> TiedHead:
        return self


class QExperts(nn.Module):
    """A stack of expert weights [E, R, C]; indexing decodes one expert, so a model's own expert loop runs unchanged."""

    def __init__(self, fmt: Format, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.format = fmt
        self.shape = shape
        for name, spec in fmt.planes(shape[1:]).items():
            self.register_buffer(name, torch.empty((shape[0], *spec.shape), dtype=spec.dtype))

    def expert(self, index: int) -> QTensor:
        """One expert's weight."""
        planes = {n: self._buffers[n][index] for n in self.format.planes(self.shape[1:])}  # type: ignore[index]
        return QTensor(self.format, self.shape[1:], planes)

    def __getitem__(self, index: int | Tensor) -> Tensor:
        return self.expert(int(index)).dequantize()

    def fill(self, planes: Planes) -> None:
        """Take these planes as they are, without a copy."""
        for name in self.format.planes(self.shape[1:]):
            self._buffers[name] = planes[name]


class SplitExperts(nn.Module):
    """A stack of expert weights [E, R, C] whose experts have formats of their own; indexing decodes one."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def __getitem__(self, index: int | Tensor) -> Tensor:
        expert = self.get_submodule(f"expert{int(index)}")
        assert isinstance(expert, Packed)
        return expert.qtensor.dequantize()


def set_activations(model: nn.Module, activations: Activations) -> None:
    """Switch every packed layer of a model."""
    for module in model.modules():
        if isinstance(module, QLinear):
            module.activations = activations
