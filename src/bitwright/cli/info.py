"""`bitwright info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bitwright.cli.output import Budget, Json, megabytes, parse_size, print_json, print_table


def info(
    path: Annotated[Path, typer.Argument(help="A folder that bitwright wrote.")],
    check: Annotated[bool, typer.Option("--check", help="Also read every file and compare its SHA-256.")] = False,
    budget: Budget = None,
    json: Json = False,
) -> None:
    """Say what is inside, where it comes from, and which code runs each kind of weight."""
    from bitwright.artifact.prefix import Prefix
    from bitwright.artifact.read import open_artifact
    from bitwright.runtime.describe import describe, loaded_bits

    artifact = open_artifact(path)
    told = describe(artifact)
    if budget is not None:
        prefix = Prefix(path, parse_size(budget, "--budget"))
        told["loaded"] = {"bytes": prefix.bytes, "stored_bits_per_weight": loaded_bits(prefix)}
    if check:
        artifact.verify_hashes()
        told["hashes"] = "equal"
    if json:
        print_json(told)
    else:
        _print(told)


def _print(told: dict[str, Any]) -> None:
    from bitwright.runtime.describe import grouped
    from bitwright.spec import label

    bits = told["stored_bits_per_weight"]
    print(f"{told['path']}: {told['architecture']}, {megabytes(told['file_bytes'])}", end="")
    print("" if bits is None else f", {bits:.4f} stored bits a weight in the blocks")
    if loaded := told.get("loaded"):
        print(f"of these loaded: {megabytes(loaded['bytes'])}, {loaded['stored_bits_per_weight']:.4f} bits a weight")
    print("bytes: " + ", ".join(f"{part} {size:,}" for part, size in told["bytes"].items()) + "\n")
    rows = [
        [r["name"], str(r["count"]), "x".join(map(str, r["shape"])), str(r["format"]), f"{r['bytes']:,}"]
        for r in grouped(told["weights"])
    ]
    print_table(["weight", "count", "shape", "format", "bytes each"], rows)
    kinds = list(next(iter(told["bits"].values()), {}))
    spent = [[part, *(f"{value / 8:,.0f}" for value in named.values())] for part, named in told["bits"].items()]
    print()
    print_table(["bytes by what they are spent on", *kinds], spent)
    print()
    for index, row in enumerate(told["formats"]):
        print(f"format {index}: {label(row['spec'])}, {row['weights']} weights")
        for path in row["paths"]:
            print(f"  runs on {path}")
    for head, table in told["tied"]:
        print(f"{head} is {table}, stored once")
    print()
    if told["beginnings"]:
        _print_beginnings(told["beginnings"])
    _print_origin(told)


def _print_beginnings(told: dict[str, Any]) -> None:
    """What `--budget` may be, and what it costs."""
    smallest = megabytes(told["smallest_bytes"])
    print(f"usable from its first {smallest} on, in {told['steps']} steps; on {told['tokens']} calibration tokens:")
    rows = [
        [megabytes(row["bytes"]), f"{row['stored_bits_per_weight']:.3f}", f"{row['kl']:.4g}"] for row in told["curve"]
    ]
    print_table(["budget", "bits a weight", "KL divergence a token"], rows)
    print()


def _print_origin(told: dict[str, Any]) -> None:
    recipe, lineage, calibration = told["recipe"], told["lineage"], told["calibration"]
    if recipe is None:
        print("origin: not recorded (saved again by transformers)")
        return
    settings = "".join(f" {key}={value}" for key, value in recipe["settings"].items())
    print(f"made by bitwright {told['bitwright']}, recipe {recipe['name']}{settings}")
    print(f"from {lineage.get('name')} (digest {str(lineage.get('digest'))[:16]}, licence {lineage.get('licence')})")
    if calibration:
        sha256 = calibration["sha256"][:16]
        print(f"calibrated on {calibration['data']}, {calibration['tokens']:,} tokens (sha256 {sha256})")
    checked = told["verification"] or {"none": "recorded"}
    print("verification: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in checked.items()))
    if "hashes" in told:
        print("every file has the SHA-256 that was recorded")
