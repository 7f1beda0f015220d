"""bitwright: trained language models in 1-4 stored bits a weight, packed for real and run on a CPU.

    import bitwright

    model = bitwright.load("model-3bit")  # an ordinary torch.nn.Module with packed weights

After the import, `transformers.AutoModelForCausalLM.from_pretrained("model-3bit")` works too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitwright.hook import after_import

if TYPE_CHECKING:
    from bitwright.engine.run import quantize
    from bitwright.runtime.elastic import ElasticModel
    from bitwright.runtime.load import load, load_float

__version__ = "0.1.0"
__all__ = ["ElasticModel", "__version__", "load", "load_float", "quantize"]

_VERBS = {
    "ElasticModel": "bitwright.runtime.elastic",
    "load": "bitwright.runtime.load",
    "load_float": "bitwright.runtime.load",
    "quantize": "bitwright.engine.run",
}


def __getattr__(name: str) -> Any:
    """Verbs are imported at first use: torch takes seconds, and `bitwright --help` must not pay for it."""
    if name not in _VERBS:
        raise AttributeError(f"module 'bitwright' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_VERBS[name]), name)


after_import("transformers", "bitwright.runtime.pretrained")
