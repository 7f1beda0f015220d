"""Where the compiled engine finds the weights of a plan: in the modules of a model, or straight in an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from bitwright.errors import BadArtifact, Refused
from bitwright.protocols import Adaptive, Format, QTensor
from bitwright.runtime import native
from bitwright.runtime.linear import Activations, Packed, QEmbedding, QLinear, TiedHead

if TYPE_CHECKING:
    from bitwright import _core
    from bitwright.artifact.read import Artifact
    from bitwright.runtime.plan import Weight


ADAPTIVE = "the compiled engine mixes no scales for each token"


class ModuleWeights:
    """Those of a loaded model. Fits `plan.Weights`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.files: list[Tensor] = []
        self._tables: dict[int, _core.Matrix] = {}  # by address of the codes: a tied head shares its table's

    def product(self, name: str, bias: Tensor | None) -> Weight:
        """Packed layers as they are, float ones in float32; `Refused` for modules that are neither."""
        module = self._model.get_submodule(name)
        if isinstance(module, QLinear):
            if module.activations == "float":
                return module.qtensor.dequantize(), bias
            return self._matrix(module, bias)
        if not isinstance(module, nn.Linear):
            raise Refused(f"the compiled engine has no step for a {type(module).__name__}: use --engine torch.")
        return module.weight.detach().float().contiguous(), bias

    def table(self, name: str) -> _core.Matrix | Tensor:
        """An embedding, packed or float32."""
        module = self._model.get_submodule(name)
        if isinstance(module, QEmbedding):
            return self._matrix(module, None)
        return self.vector(f"{name}.weight")

    def vector(self, name: str) -> Tensor:
        """Any parameter in float32."""
        return self._model.get_parameter(name).detach().float().contiguous()

    def _matrix(self, module: Packed, bias: Tensor | None) -> _core.Matrix:
        _require_fixed(module.format)
        key = module.planes["weight"].data_ptr()
        if not isinstance(module, QEmbedding | TiedHead):
            return native.native_matrix(module.terms(), module.shape, bias).core
        if key not in self._tables:
            self._tables[key] = native.native_matrix(module.terms(), module.shape, None).core
        return self._tables[key]


class StoredWeights:
    """Those of an artifact; `tied` says that a head without a weight is the embedding. Fits `plan.Weights`.

    With float `activations` products are with decoded weights.
    """

    def __init__(self, artifact: Artifact, tied: bool, activations: Activations = "int8") -> None:
        self._artifact = artifact
        self.files = [file.mapped for file in artifact.files if file.mapped is not None]
        self._activations = activations
        self._packed = {weight.name: weight for weight in artifact.weights()}
        self._kept = frozenset(artifact.kept)
        self._tied = {**({"lm_head": "model.embed_tokens"} if tied else {}), **dict(artifact.quantization.tied)}
        self._unused = {*self._packed, *self._kept}
        self._tables: dict[str, _core.Matrix] = {}

    def product(self, name: str, bias: Tensor | None) -> Weight:
        """Packed weights as views of the file, float ones in float32."""
        if name not in self._packed and f"{name}.weight" not in self._kept and name in self._tied:
            name = self._tied[name]
        if name not in self._packed:
            return self.vector(f"{name}.weight"), bias
        if self._activations == "float":
            return self._decoded(name), bias
        return self._tables[name] if name in self._tables else self._matrix(name, bias)

    def table(self, name: str) -> _core.Matrix | Tensor:
        """An embedding, packed or float32."""
        if name not in self._packed:
            return self.vector(f"{name}.weight")
        if name not in self._tables:
            self._tables[name] = self._matrix(name, None)
        return self._tables[name]

    def vector(self, name: str) -> Tensor:
        """Any tensor that is not packed, in float32."""
        if name not in self._kept:
            raise BadArtifact(f"the artifact holds no {name}: write it again.")
        self._unused.discard(name)
        return self._artifact.tensor(name).float().contiguous()

    def finish(self) -> None:
        """`BadArtifact` if something was asked for by nobody."""
        if self._unused:
            raise BadArtifact(f"the artifact holds {min(self._unused)}, which the model has no place for.")

    def _matrix(self, name: str, bias: Tensor | None) -> _core.Matrix:
        stored = self._stored(name)
        return native.native_matrix(stored.format.terms(stored.planes, stored.shape), stored.shape, bias).core

    def _decoded(self, name: str) -> Tensor:
        return self._stored(name).dequantize().contiguous()

    def _stored(self, name: str) -> QTensor:
        weight = self._packed[name]
        if len(weight.shape) != 2:
            raise BadArtifact(f"{name} is stored as {list(weight.shape)}, but config.json makes it a matrix.")
        self._unused.discard(name)
        fmt = self._artifact.formats[weight.format]
        _require_fixed(fmt)
        return QTensor(fmt, weight.matrix, self._artifact.planes(name))


def _require_fixed(fmt: Format) -> None:
    if isinstance(fmt, Adaptive):
        raise Refused(f"{ADAPTIVE}: use --engine torch.")
