"""A small mixture-of-experts model (Mixtral, 8 experts, 5 million parameters) trained on a text: something to quantize.

One token a byte, so that no tokenizer has to be learned. Run:

    python examples/train_moe.py TEXT FOLDER [--minutes 20]

TEXT is a .txt, .jsonl or .gz file. A twentieth of it is held out; its bits a byte are printed at the end.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from bitwright.calibrate.tokens import read_text

LENGTH, BATCH = 256, 8
RATE, WARM = 2e-3, 50  # largest learning rate, and steps until it is reached


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def small_mixtral(vocabulary: int) -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=vocabulary, hidden_size=192, intermediate_size=256, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=LENGTH, num_local_experts=8, num_experts_per_tok=2,
        tie_word_embeddings=True, output_router_logits=True, router_aux_loss_coef=0.02,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def batch(ids: Tensor, draw: torch.Generator) -> Tensor:
    starts = torch.randint(0, len(ids) - LENGTH, (BATCH,), generator=draw).tolist()
    return torch.stack([ids[start : start + LENGTH] for start in starts])


def train(model: MixtralForCausalLM, ids: Tensor, minutes: float) -> None:
    """AdamW; the learning rate rises, then falls with the time that is left, as a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)
    draw = torch.Generator().manual_seed(0)
    began, step = time.monotonic(), 0
    while (done := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARM) * (1 + math.cos(math.pi * done)) / 2
        rows = batch(ids, draw)
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}, {done:.0%} of the time: loss {loss.item():.3f}", flush=True)
        step += 1


@torch.inference_mode()
def bits_a_byte(model: MixtralForCausalLM, ids: Tensor) -> float:
    """On at most 64 windows."""
    windows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)[:64]
    logits = model(input_ids=windows, output_router_logits=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    return loss.item() / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    options = parser.parse_args()
    tokenizer = byte_tokenizer()
    ids = tokenizer("".join(read_text(options.text)), return_tensors="pt", verbose=False).input_ids[0]
    held_out = len(ids) // 20
    torch.manual_seed(0)
    model = small_mixtral(len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(ids):,} bytes of text")
    train(model, ids[:-held_out], options.minutes)
    model.config.output_router_logits = False
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)
    print(f"{bits_a_byte(model.eval(), ids[-held_out:]):.3f} bits a byte on held-out text; {options.folder}")


if __name__ == "__main__":
    main()
