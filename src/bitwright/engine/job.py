"""What the user asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

TOKENS = 20_480


class Job(BaseModel):
    """One `bitwright quantize`. Everything that decides the bytes of the result joins its fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str
    out: Path
    recipe: str = "gptq"
    bits: float | None = Field(default=None, gt=0)
    target_bytes: int | None = Field(default=None, gt=0)  # of the weight files
    target_bpw: float | None = Field(default=None, gt=0)  # stored bits a weight of the blocks, spread over tensors
    max_kl: float | None = Field(default=None, gt=0)  # predicted, nats a token: the smallest file below it
    min_speed: float | None = Field(default=None, gt=0)  # predicted tokens a second on this machine, one text
    max_bit_operations: int | None = Field(default=None, gt=0)  # a token: multiply-adds x code bits x activation bits
    score: str | None = None  # losses of the allocator; None: as the recipe says
    plan: Path | None = None  # a file that names the format of every tensor
    settings: dict[str, str] = {}
    data: tuple[Path, ...] = ()  # or one path; none: the model's own samples
    tokens: int | None = Field(default=None, gt=0)  # None: TOKENS
    length: int | None = Field(default=None, gt=1)  # None: 512, or what the model reads if that is less
    seed: int = 0
    max_memory: int | None = Field(default=None, gt=0)  # bytes
    threads: int | None = Field(default=None, gt=0)  # changes the speed, never the result

    @field_validator("data", mode="before")
    @classmethod
    def _several(cls, data: Any) -> Any:
        return (data,) if isinstance(data, str | Path) else data or ()

    @property
    def calibration_tokens(self) -> int:
        """How many the inputs of layers are looked at."""
        return self.tokens or TOKENS
