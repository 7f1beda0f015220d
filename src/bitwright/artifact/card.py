"""The model card: README.md of an artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bitwright.artifact.layout import Manifest
from bitwright.bits import Bits, total

USAGE = """\
```python
import bitwright  # first: without it transformers cannot read the packed weights

model = bitwright.load("PATH/OF/THIS/FOLDER")
```

`transformers.Auto...from_pretrained` works too, after the import. In a terminal: `bitwright info PATH`,
`bitwright generate PATH --prompt "..."`, `bitwright evaluate PATH`.
"""


def model_card(manifest: Manifest, config: Mapping[str, Any]) -> str:
    """Markdown with the front matter of model hubs: what this is, from what, at how many bits, how to run it."""
    totals = manifest.totals
    base, licence = (manifest.lineage.get(k) for k in ("name", "licence"))
    front: dict[str, Any] = {
        "library_name": "bitwright",
        "license": licence,
        "base_model": base,
        "base_model_relation": "quantized" if base else None,
        "tags": ["bitwright", "quantized"],
    }
    head = "\n".join(f"{k}: {json.dumps(v)}" for k, v in front.items() if v is not None)  # JSON is YAML
    return f"""\
---
{head}
---
# {base or config.get("model_type", "model")}, packed by bitwright

Weights at {totals.stored_bits_per_weight:.3f} stored bits each in the linears of the blocks, everything included,
made with the recipe `{manifest.recipe.name}` by bitwright {manifest.bitwright}.
All weight files together: {totals.file_bytes:,} bytes.

## How to run it

{USAGE}
## What the bytes are spent on

{_bits_table(manifest)}

## Where it comes from

{_lineage(manifest)}
"""


def _bits_table(manifest: Manifest) -> str:
    """One row a part of the model, one column a purpose, in bytes."""
    purposes = list(Bits().named())
    lines = [f"| bytes | {' | '.join(purposes)} | together |", "|---" * (len(purposes) + 2) + "|"]
    for part in ("block", "embedding", "head"):
        rows = [row for row in manifest.plan if row.part == part]
        if rows:
            named = total(Bits(**row.bits) for row in rows).named()
            cells = [f"{bits / 8:,.0f}" for bits in named.values()] + [f"{sum(row.bytes for row in rows):,}"]
            lines.append(f"| {part} | {' | '.join(cells)} |")
    lines.append(
        f"\nNot quantized: {manifest.totals.kept_bytes:,} bytes; headers: {manifest.totals.header_bytes:,} bytes."
    )
    return "\n".join(lines)


def _lineage(manifest: Manifest) -> str:
    """The source, the calibration text and what makes the run repeatable."""
    facts: dict[str, Any] = dict(manifest.lineage)
    if manifest.calibration:
        facts["calibration"] = f"{manifest.calibration.data}, {manifest.calibration.tokens} tokens"
    if manifest.tuning:
        told = f"{manifest.tuning.steps} steps, {manifest.tuning.tokens} tokens of {manifest.tuning.data.data}"
        facts["tuned towards the float model"] = told
    facts["fingerprint"] = manifest.fingerprint
    lines = [f"- {key}: {v if isinstance(v, str) else json.dumps(v)}" for key, v in sorted(facts.items())]
    if not manifest.lineage.get("licence"):
        lines.append("- The licence of the source is not known; it holds for this folder as well.")
    return "\n".join(lines)
