"""The compiled engine against transformers: every family, packed and float weights, cache borders, sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bitwright import _core
from bitwright.errors import BadInput, Refused
from bitwright.formats.binary import Binary
from bitwright.formats.integer import Integer
from bitwright.formats.mixed import Mixed
from bitwright.formats.mixture import Mixture
from bitwright.formats.residual import Residual
from bitwright.formats.rotated import Rotated
from bitwright.formats.trellis import Trellis
from bitwright.formats.zoned import Zoned
from bitwright.partitions.columns import Columns
from bitwright.partitions.slots import Slots
from bitwright.protocols import Format
from bitwright.runtime import engine
from bitwright.runtime.linear import QEmbedding, QLinear, TiedHead
from bitwright.runtime.plan import refusal
from bitwright.solvers.rtn import Rtn

transformers = pytest.importorskip("transformers")

VOCABULARY = 150
SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 400,
    "pad_token_id": 0,
}
TABLE = Integer(bits_per_code=8, group=32)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3_ROPE}),
    "mistral": ("Mistral", {"sliding_window": 70}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "gemma2": ("Gemma2", {"sliding_window": 33, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3Text", {"sliding_window": 65, "final_logit_softcapping": 5.0, "attn_logit_softcapping": None}),
}


def model_of(name: str, **more: Any) -> Any:
    kind, settings = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **settings, **more}, attn_implementation="eager")
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        # Weights large enough for attention to look at something, norms and biases that are not their defaults.
        parameter.data += torch.randn_like(parameter) * (0.08 if parameter.dim() == 2 else 0.2)
    return model.requires_grad_(False)


def pack(model: Any, others: Mapping[str, Format] = MappingProxyType({}), fmt: Format = TABLE) -> Any:
    """4- and 3-bit layers of several groups, or `others`; tied embedding in `fmt`; `o_proj` stays float."""
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, old in list(parent.named_children()):
                if isinstance(old, nn.Linear) and name != "o_proj":
                    bits, group = 3 if name in ("q_proj", "up_proj") else 4, 32 if "q" in name else 64
                    own = others.get(name) or Integer(bits_per_code=bits, group=group)
                    new = QLinear(own, tuple(old.weight.shape), old.bias is not None)
                    new.fill(Rtn().solve(old.weight.data, own, None).planes)
                    if old.bias is not None:
                        new.bias.data.copy_(old.bias.data)
                    setattr(parent, name, new)
    old = model.model.embed_tokens
    table = QEmbedding(fmt, tuple(old.weight.shape), float(getattr(old, "embed_scale", 1.0)))
    table.fill(Rtn().solve(old.weight.data, fmt, None).planes)
    model.model.embed_tokens, model.lm_head = table, TiedHead(table)
    return model


def built(model: Any, **options: Any) -> engine.Engine:
    return engine.build(model, **options)


def text(count: int) -> list[int]:
    return torch.randint(1, VOCABULARY, (count,), generator=torch.Generator().manual_seed(count)).tolist()


def expected(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()


@pytest.mark.parametrize("name", MODELS)
def test_float_weights_give_the_logits_of_transformers(name: str) -> None:
    model, ids = model_of(name), text(150)
    logits = expected(model, ids)
    fine = built(model, fine_cache=True).logits(ids, every=True)
    assert (fine - logits).abs().max() < 2e-3 * logits.std()
    coarse = built(model).logits(ids, every=True)
    assert (coarse - logits).std() < 0.05 * logits.std()


@pytest.mark.parametrize("table", [TABLE, Trellis(16), Rotated(TABLE)], ids=["integer", "trellis", "rotated"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_packed_weights_give_the_logits_of_the_packed_model(name: str, table: Format) -> None:
    # Teacher-forced; int8 activations round differently where two sums of floats differ in the last bit, so what is
    # compared is the noise, and the first token wherever it leads by more than twice that.
    model, ids = pack(model_of(name), fmt=table), text(150)
    logits = expected(model, ids)
    ours = built(model, fine_cache=True).logits(ids, every=True)
    noise = (ours - logits).abs().max()
    assert noise < 0.25 * logits.std()
    top = logits.topk(2, 1).values
    clear = top[:, 0] - top[:, 1] > 2 * noise
    assert clear.any()
    assert torch.equal(ours.argmax(1)[clear], logits.argmax(1)[clear])


def test_float_activations_give_the_logits_of_decoded_weights() -> None:
    model, ids = pack(model_of("qwen3")), text(90)
    for module in model.modules():
        if isinstance(module, QLinear):
            module.activations = "float"
    logits = expected(model, ids)
    ours = built(model, fine_cache=True).logits(ids, every=True)
    assert (ours - logits).abs().max() < 2e-3 * logits.std()


def same_whole_and_token_by_token(model: Any, ids: list[int], single: int) -> None:
    """The logits of the packed model, and the same bits where the last `single` tokens come one by one."""
    logits = expected(model, ids)
    whole = built(model, fine_cache=True).logits(ids, every=True)
    assert (whole - logits).abs().max() < 0.25 * logits.std()
    one = built(model, fine_cache=True, threads=1)
    one.core.forward(ids[:-single])
    singles = [torch.from_numpy(one.core.forward([token])) for token in ids[-single:]]
    assert torch.equal(torch.cat(singles), whole[-single:])


def test_column_scales_give_a_layer_activations_of_its_own(isa: str) -> None:
    others = {
        "q_proj": Residual(3, 64, columns="shared"),  # beside k and v, which have none or others
        "v_proj": Residual(4, 32, columns="own"),
        "k_proj": Zoned(Residual(2, 32), "alternating"),  # two terms for the codes of a plane
        "gate_proj": Rotated(Trellis(16)),
        "up_proj": Rotated(Residual(4, None, columns="own")),
        "down_proj": Mixed(Residual(2, None, columns="shared"), Columns(0.3), 8, "columns"),
    }
    same_whole_and_token_by_token(pack(model_of("llama"), others), text(80), 20)


def test_layers_that_read_one_input_in_other_orders(isa: str) -> None:
    slots = Mixed(Binary(32), Slots(64), 8, "nm")
    others = {
        "q_proj": Trellis(64),  # columns of words, of blocks and quads of 64, of the same input
        "k_proj": slots,
        "v_proj": Trellis(20),
        "gate_proj": slots,
        "up_proj": Trellis(64),
        "down_proj": Mixed(Binary(64), Slots(128), 8, "nm"),
    }
    same_whole_and_token_by_token(pack(model_of("llama"), others), text(40), 20)


def test_scales_that_tokens_mix_are_refused() -> None:
    with pytest.raises(Refused, match="mixes no scales for each token"):
        built(pack(model_of("llama"), {"down_proj": Mixture()}))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_blocks_and_single_tokens_give_the_same_bits(isa: str, name: str) -> None:
    model, ids = pack(model_of(name)), text(280)
    whole = built(model).logits(ids, every=True)
    one = built(model, threads=1)
    for end in (0, 15, 16, 17, 63, 64, 65, 129, 255):
        one.core.truncate(0)
        if end:
            one.core.forward(ids[:end])
        singles = [torch.from_numpy(one.core.forward([token])) for token in ids[end : end + 20]]
        assert torch.equal(torch.cat(singles), whole[end : end + 20])


@pytest.mark.parametrize("window", [None, 530], ids=["all", "window"])
def test_positions_shared_out_in_ranges_give_the_same_bits(isa: str, window: int | None) -> None:
    # A range is 512 positions; with 3 threads and 2 kv heads a border between workers falls into a range as well.
    more = {"max_position_embeddings": 1100, "num_hidden_layers": 2} | ({"sliding_window": window} if window else {})
    model, ids = pack(model_of("mistral" if window else "llama", **more)), text(1030)
    whole = built(model).logits(ids, every=True)
    for threads in (1, 2, 3):
        one = built(model, threads=threads)
        for end in (1021, 574, 510):
            if one.core.position == 0:
                one.core.forward(ids[:end])
            one.core.truncate(end)
            singles = [torch.from_numpy(one.core.forward([token])) for token in ids[end : end + 5]]
            assert torch.equal(torch.cat(singles), whole[end : end + 5])


def test_a_long_text_in_several_ranges_gives_the_logits_of_transformers() -> None:
    model, ids = model_of("llama", max_position_embeddings=1100), text(1040)
    logits = expected(model, ids)
    fine = built(model, fine_cache=True).logits(ids, every=True)
    assert (fine - logits).abs().max() < 2e-3 * logits.std()


def test_thread_counts_and_levels_give_the_same_bits() -> None:
    model, ids = pack(model_of("qwen3")), text(100)
    first = built(model, threads=1).logits(ids, every=True)
    before = _core.isa()
    try:
        for isa in _core.cpu_info()["levels"]:
            _core.set_isa(isa)
            for threads in (1, 2, 3):
                assert torch.equal(built(model, threads=threads).logits(ids, every=True), first)
    finally:
        _core.set_isa(before)


def test_greedy_text_is_the_most_probable_token_each_time() -> None:
    model = pack(model_of("llama"))
    made, ids = built(model), text(30)
    found = list(made.tokens(ids, 40, chunk=7))
    check, known = built(model, threads=1), list(ids)
    for token in found:
        assert token == int(check.logits(known).argmax())
        known.append(token)
    assert list(made.tokens(ids, 40)) == found  # from the cache of the first run
    stop = found[11]
    assert list(made.tokens(ids, 40, stop=frozenset({stop}))) == found[: found.index(stop)]


def test_a_prompt_that_continues_another_is_computed_from_where_they_part() -> None:
    model, ids = pack(model_of("llama")), text(90)
    made = built(model)
    made.logits(ids[:70])
    assert torch.equal(made.logits(ids), built(model).logits(ids))
    other = [*ids[:40], 3, 4, 5]
    assert torch.equal(made.logits(other), built(model).logits(other))


def test_sampling_follows_the_probabilities() -> None:
    model, ids = model_of("llama"), text(10)
    made = built(model)
    probability = (made.logits(ids)[0] / 0.7).softmax(0)
    drawn = Counter(next(made.tokens(ids, 1, temperature=0.7, seed=s)) for s in range(2000))
    for token in probability.topk(5).indices.tolist():
        assert abs(drawn[token] / 2000 - probability[token]) < 0.05
    best = probability.topk(4)
    assert set(Counter(next(made.tokens(ids, 1, temperature=0.7, top_k=4, seed=s)) for s in range(100))) <= set(
        best.indices.tolist()
    )
    nucleus = int((best.values.cumsum(0) < 0.9 * best.values.sum()).sum()) + 1
    assert nucleus >= 1
    floor = float(best.values[0]) * 0.8
    kept = {next(made.tokens(ids, 1, temperature=0.7, min_p=0.8, seed=s)) for s in range(100)}
    assert all(probability[token] >= floor * 0.999 for token in kept)
    tiny = {next(made.tokens(ids, 1, temperature=0.7, top_p=1e-6, seed=s)) for s in range(50)}
    assert tiny == {int(probability.argmax())}


def test_seeds_repeat_and_a_penalty_avoids_what_was_said() -> None:
    made, ids = built(model_of("llama")), text(10)
    first = list(made.tokens(ids, 30, temperature=1.0, seed=5))
    assert list(made.tokens(ids, 30, temperature=1.0, seed=5)) == first
    assert list(made.tokens(ids, 30, temperature=1.0, seed=6)) != first
    punished = list(made.tokens(ids, 60, repetition_penalty=1e6))
    assert len(set(punished) | set(ids)) == len(punished) + len(set(ids))


def test_closing_the_iterator_stops_the_work() -> None:
    made = built(model_of("llama"))
    stream = made.tokens(text(5), 300)
    taken = [next(stream) for _ in range(3)]
    stream.close()
    assert len(taken) == 3
    assert made.core.position < 300


def test_what_does_not_fit() -> None:
    made = built(model_of("llama"))
    with pytest.raises(BadInput, match="between 1 and 399"):
        list(made.tokens([], 3))
    with pytest.raises(BadInput, match="between 1 and 399"):
        list(made.tokens([1] * 400, 3))
    assert len(list(made.tokens([1] * 390, 100))) == 10
    with pytest.raises(ValueError, match="vocabulary"):
        made.core.forward([VOCABULARY])
    with pytest.raises(ValueError, match="context"):
        made.core.forward([1] * 401)
    with pytest.raises(Refused, match="this is gpt2"):
        engine.build(SimpleNamespace(config=transformers.GPT2Config()))
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert "of type dynamic" in str(refusal(transformers.LlamaConfig(**SIZES, rope_parameters=dynamic)))
    assert refusal(transformers.Gemma3TextConfig(**SIZES)) is None


def test_as_a_module_it_maps_texts_to_logits() -> None:
    model, ids = pack(model_of("llama")), text(60)
    module = engine.Compiled(built(model))
    logits = module(torch.tensor([ids[:30], ids[30:]])).logits
    assert torch.equal(logits[1], module(torch.tensor([ids[30:]])).logits[0])
    assert torch.equal(logits[0], built(model).logits(ids[:30], every=True))
