"""Text from a model, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bitwright.errors import BadField, BadInput, Refused
from bitwright.models.continuation import continued
from bitwright.protocols import Adaptive, Format
from bitwright.runtime import native
from bitwright.runtime.engine import Compiled, Engine, build, open_engine
from bitwright.runtime.linear import Activations, QLinear
from bitwright.runtime.plan import refusal
from bitwright.runtime.weights import ADAPTIVE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bitwright.artifact.read import Artifact

SEEDS = 2**63  # that the engine and torch both take
EngineChoice = Literal["auto", "native", "torch"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the most probable one at temperature 0, else drawn from the top `top_p`."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise BadField(self, "temperature", self.temperature, "give 0 or more")
        if not 0 <= self.seed < SEEDS:
            raise BadField(self, "seed", self.seed, "give 0 to 2^63 - 1")
        if not 0 < self.top_p <= 1:
            raise BadField(self, "top_p", self.top_p, "give more than 0 and at most 1")


GREEDY = Sampling()


@dataclass
class Generator:
    """A model that continues texts: in the compiled engine if there is one, else in torch; `why` tells the reason."""

    runs: Engine | PreTrainedModel
    ends: frozenset[int]  # tokens that the model's settings name as the end of a text
    why: str

    @property
    def module(self) -> nn.Module:
        """What maps ids int64 [B, T] to an object with `.logits` [B, T, V]."""
        return Compiled(self.runs) if isinstance(self.runs, Engine) else self.runs

    def tokens(
        self, ids: Sequence[int], limit: int, sampling: Sampling = GREEDY, stop: frozenset[int] = frozenset()
    ) -> Iterator[int]:
        """At most `limit` tokens that follow `ids`, before the first of `stop`, while the model has positions left.

        `BadInput` if `ids` is empty or longer than the model reads.
        """
        if not isinstance(self.runs, Engine):
            return torch_tokens(self.runs, ids, limit, sampling, stop)
        t, p, seed = sampling.temperature, sampling.top_p, sampling.seed
        return self.runs.tokens(ids, limit, temperature=t, top_p=p, seed=seed, stop=stop)


def generator(model: PreTrainedModel, choice: EngineChoice = "auto") -> Generator:
    """How to generate with a model. "native" insists on the compiled engine: `Refused` says why it cannot run this."""
    ends = _tokens(getattr(model.generation_config, "eos_token_id", None))
    packed = [module for module in model.modules() if isinstance(module, QLinear)]
    reason = why_torch(model.config, {m.format for m in packed}, choice)
    if reason is not None:
        return Generator(model, ends, reason)
    exact = any(layer.activations == "float" for layer in packed)
    return Generator(build(model, torch.get_num_threads(), exact), ends, _compiled())


def open_generator(
    artifact: Artifact, activations: Activations, choice: EngineChoice = "auto", in_place: bool = False
) -> Generator:
    """`generator` of an artifact, which the compiled engine reads without the modules of the model.

    `in_place` as in `open_engine`. Where activations are floats, keys and values have 15 bits.
    """
    from bitwright.runtime.load import load_artifact, read_config

    config = read_config(artifact.config)
    if why_torch(config, set(artifact.formats), choice) is not None:
        return generator(load_artifact(artifact, activations), choice)
    settings = artifact.generation_config
    ends = _tokens(config.eos_token_id if settings is None else settings.get("eos_token_id"))
    exact = activations == "float"
    engine = open_engine(artifact, torch.get_num_threads(), exact, in_place=in_place, activations=activations)
    return Generator(engine, ends, _compiled())


def _compiled() -> str:
    return f"compiled engine, {native.level()} kernels"


def _tokens(configured: Any) -> frozenset[int]:
    found = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in found if isinstance(token, int))


def why_torch(config: Any, formats: Set[Format], choice: EngineChoice) -> str | None:
    """Why a model of this transformers config runs in torch; None where the compiled engine runs it.

    `formats` are those of its packed layers. `Refused` where the choice is "native" and the engine cannot.
    """
    if choice == "torch":
        return "torch: asked for"
    reason = _obstacle(config, formats)
    if reason is not None and choice == "native":
        raise Refused(f"the compiled engine cannot run this model ({reason}): use --engine auto.")
    return reason


def _obstacle(config: Any, formats: Set[Format]) -> str | None:
    if not formats:
        return "torch: its weights are not packed"
    usable, reason = native.available()
    refused = ADAPTIVE if any(isinstance(fmt, Adaptive) for fmt in formats) else refusal(config)
    return reason if not usable else None if refused is None else f"torch: {refused}"


def stream(
    speaker: Generator,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
) -> Iterator[str]:
    """The text that follows `ids`: one piece a token, empty while a character is incomplete."""
    text = _Text(tokenizer)
    ends = speaker.ends | _tokens(tokenizer.eos_token_id)
    for token in speaker.tokens(ids, max_tokens, sampling, ends):
        yield text.add(token)
    yield text.rest()


def torch_tokens(
    model: PreTrainedModel,
    ids: Sequence[int],
    limit: int,
    sampling: Sampling = GREEDY,
    stop: frozenset[int] = frozenset(),
) -> Iterator[int]:
    """`Generator.tokens` by the modules of the model, for every architecture."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or len(ids) + limit
    if not 0 < len(ids) < positions:
        raise BadInput(f"the prompt has {len(ids)} tokens: give between 1 and {positions - 1}.")
    generator = torch.Generator().manual_seed(sampling.seed)
    new, cache = torch.tensor([list(ids)]), None
    for _ in range(min(limit, positions - len(ids))):
        with torch.inference_mode():
            logits, cache = continued(model, new, cache, logits_to_keep=1)
            token = _choose(logits[0, -1].float(), sampling, generator)
        if token in stop:
            return
        yield token
        new = torch.tensor([[token]])


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[int]:
    """A conversation as tokens, ready for the answer; `BadInput` if the model has no chat template."""
    if not tokenizer.chat_template:
        raise BadInput("this model has no chat template: use `bitwright generate`.")
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    p, order = torch.softmax(logits / sampling.temperature, -1).sort(descending=True)
    p[1:][(p.cumsum(0) - p)[1:] >= sampling.top_p] = 0  # the first token always stays
    return int(order[torch.multinomial(p, 1, generator=generator)])


class _Text:
    """Text of tokens as they come: one may hold a part of a character, and its text may depend on the one before."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.before = self.shown = 0  # tokens of context, tokens whose text is out

    def add(self, token: int) -> str:
        self.ids.append(token)
        new = self._new()
        if new.endswith("\ufffd"):
            return ""
        self.before, self.shown = self.shown, len(self.ids)
        return new

    def rest(self) -> str:
        """What was held back as incomplete."""
        return self._new() if self.shown < len(self.ids) else ""

    def _new(self) -> str:
        context = self._decode(self.ids[self.before : self.shown])
        return self._decode(self.ids[self.before :])[len(context) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
