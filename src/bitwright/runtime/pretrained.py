"""`AutoModelForCausalLM.from_pretrained(FOLDER)` for bitwright folders; imported once transformers is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitwright.artifact.layout import Quantization


@register_quantization_config("bitwright")
class BitwrightConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What config.json holds under "quantization_config"."""

    def __init__(self, version: int = 1, formats: Any = (), weights: Any = (), tied: Any = (), **_: Any) -> None:
        self.quant_method = "bitwright"
        self.version = version
        self.formats = list(formats)
        self.weights = list(weights)
        self.tied = list(tied)


@register_quantizer("bitwright")
class BitwrightQuantizer(HfQuantizer):  # type: ignore[misc]
    """Swaps packed modules in while the model is still on the meta device; their planes then load as buffers."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        from bitwright.artifact.layout import Quantization, expert_of, parse
        from bitwright.artifact.plan import formats
        from bitwright.runtime.install import install

        quantization = parse(Quantization, self.quantization_config.to_dict(), "quantization_config of config.json")
        if any(len(weight.shape) == 3 or expert_of(weight.name) for weight in quantization.weights):
            model.set_experts_implementation("eager")  # one expert at a time, as packed stacks give them
        install(model, quantization, formats(quantization))

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Packed planes are ordinary buffers."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes are integers."""
        return False


def mark_quantized(model: PreTrainedModel, quantization: Quantization) -> None:
    """Tell transformers what the model is, as if `from_pretrained` had loaded it: `save_pretrained` needs to know."""
    config = BitwrightConfig(**quantization.model_dump(mode="json", exclude={"quant_method"}))
    model.config.quantization_config = config
    model.hf_quantizer = BitwrightQuantizer(config)
    model.is_quantized = True
    # Planes carry the names of modules: the renaming of float checkpoints, experts say, must not be reverted on them.
    model._weight_conversions = []
