"""GGUF files of other types from one, by llama.cpp itself, and what its build can do.

python benchmarks/llama_files.py MODEL.gguf FOLDER [TYPE ...]     (Q4_0 Q4_K_M Q3_K_M Q2_K TQ2_0 TQ1_0)

For speeds only: a file that is already quantized is quantized once more, and its text is worse for it. A type that a
matrix does not fit becomes another one; what a file really holds is told beside it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import llama_cpp
from gguf import GGUFReader

TYPES = ("Q4_0", "Q4_K_M", "Q3_K_M", "Q2_K", "TQ2_0", "TQ1_0")


def quantize(source: Path, target: Path, kind: str) -> None:
    """`RuntimeError` where llama.cpp refuses."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), options):
        target.unlink(missing_ok=True)
        raise RuntimeError(f"llama.cpp cannot write {kind} from {source}")


def holds(file: Path) -> str:
    """Types of the matrices and how many weights have each."""
    counts: Counter[str] = Counter()
    for tensor in GGUFReader(file).tensors:
        if len(tensor.shape) > 1:
            counts[tensor.tensor_type.name] += int(tensor.n_elements)
    return ", ".join(f"{count / 1e6:.0f} M {name}" for name, count in counts.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("types", nargs="*", default=TYPES)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    print("llama.cpp", llama_cpp.__version__, llama_cpp.llama_print_system_info().decode().strip())
    for kind in options.types:
        target = options.folder / f"{options.model.stem.rsplit('.', 1)[0]}.{kind}.gguf"
        try:
            if not target.exists():
                quantize(options.model, target, kind)
        except RuntimeError as refusal:
            print(refusal)
            continue
        print(f"{target} {target.stat().st_size / 1e6:.1f} MB: {holds(target)}")


if __name__ == "__main__":
    main()
