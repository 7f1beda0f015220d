"""`bitwright chat`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from bitwright.cli.generate import EngineOption, MaxTokens, Seed, Temperature, TopP, set_threads, write_pieces
from bitwright.cli.output import Budget, Json, Threads, note, parse_size, print_json
from bitwright.errors import BitwrightError


def chat(
    path: Annotated[str, typer.Argument(help="A folder that bitwright wrote, or a float model.")],
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.2,
    top_p: TopP = 0.9,
    seed: Seed = 0,
    engine: EngineOption = "auto",
    budget: Budget = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Talk with a model by its own chat template. /quit ends; Ctrl-C ends the answer, a second one the session."""
    from bitwright.cli.subject import open_subject
    from bitwright.runtime.generate import Sampling, chat_ids, stream

    sampling = Sampling(temperature, top_p, seed)
    set_threads(threads)
    subject = open_subject(path, engine=engine, budget=parse_size(budget, "--budget"))
    tokenizer = subject.tokenizer()
    subject.speaker()  # a model that cannot run is refused before anything is typed
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    answers: list[dict[str, Any]] = []
    # and so is one without a template
    chat_ids(tokenizer, [{"role": "user", "content": ""}])
    if sys.stdin.isatty():
        note("/quit or Ctrl-D ends" + (", /budget 40MB changes the size" if subject.resize else ""))
    for said in _lines():
        if subject.resize is not None and said.startswith("/budget"):
            _resize(subject.resize, said.removeprefix("/budget"))
            continue
        messages.append({"role": "user", "content": said})
        ids = chat_ids(tokenizer, messages)
        told = write_pieces(
            stream(subject.speaker(), tokenizer, ids, max_tokens=max_tokens, sampling=sampling), to_stderr=json
        )
        messages.append({"role": "assistant", "content": told["text"]})
        answers.append({key: told[key] for key in ("tokens", "tokens_per_second", "seconds", "peak_rss_bytes")})
    if json:
        print_json({"messages": messages, "answers": answers})


def _resize(resize: Callable[[int | None], None], wanted: str) -> None:
    """Use more or less of the file; a size that cannot be leaves things as they are."""
    try:
        resize(parse_size(wanted.strip() or None, "/budget"))
    except BitwrightError as error:
        note(str(error))


def _lines() -> Iterator[str]:
    """What the user types, until /quit, the end of the input or Ctrl-C."""
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if said == "/quit":
            return
        if said:
            yield said
