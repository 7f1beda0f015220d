"""A model that takes as much memory as it is given, more or less of it while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.artifact.prefix import Prefix
from bitwright.runtime.linear import Activations

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitwright.runtime.generate import EngineChoice, Generator


class ElasticModel:
    """The beginning of an artifact whose weights are stored in blocks (BitStack, arXiv 2410.23918; nested integers).

    `budget` is in bytes of its weight file, None for all of it; only so much is read. Codes and scales are multiplied
    as they are stored, nothing is decoded. `Refused` where a budget is smaller than the smallest beginning or larger
    than the file.
    """

    def __init__(
        self,
        path: str | Path,
        budget: int | None = None,
        activations: Activations = "int8",
        choice: EngineChoice = "auto",
    ) -> None:
        self.prefix = Prefix(Path(path), budget)
        self._activations: Activations = activations
        self._choice: EngineChoice = choice
        self._model: PreTrainedModel | None = None
        self._generator: Generator | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the weight file in use."""
        return self.prefix.bytes

    def resize(self, budget: int | None) -> None:
        """Take the best model of at most `budget` bytes: read what is missing, or give memory back.

        What `model` and `generator` gave before is of the old size, and keeps its memory as long as somebody holds it.
        """
        if self.prefix.resize(budget):
            self._model = self._generator = None

    @property
    def model(self) -> PreTrainedModel:
        """An ordinary module with packed weights, as `bitwright.load` gives it."""
        from bitwright.runtime.load import load_artifact

        if self._model is None:
            self._model = load_artifact(self.prefix.part, self._activations)
        return self._model

    def generator(self) -> Generator:
        """What continues texts. The compiled engine reads the weights where they are; its cache begins empty."""
        from bitwright.runtime.generate import open_generator

        if self._generator is None:
            self._generator = open_generator(self.prefix.part, self._activations, self._choice, in_place=True)
        return self._generator
