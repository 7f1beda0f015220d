"""A second decoder, written from docs/format.md alone, one entry at a time: the page says enough, and says it right."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
FIELDS = {1: [1], 2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1], 8: [8]}


def code(plane, width, n, k, columns):
    """Code of row n, column k."""
    raw = plane.reshape(-1)
    if width == "base3":
        byte = raw[64 * ((n // 16) * -(-columns // 20) + k // 20) + 4 * (n % 16) + k % 4]
        return int(byte) // 3 ** (k % 20 // 4) % 3
    value = before = 0
    for w in FIELDS[width]:
        vector = (n // 16) * width * -(-columns // 32) + (k // 32) * width + before + (k % 32) // (32 // w)
        byte = int(raw[64 * vector + 4 * (n % 16) + k % 4])
        field = (k % (32 // w)) // 4
        value |= (byte >> w * field & (1 << w) - 1) << before
        before += w
    return value


def affine(spec, planes, n, k, columns):
    """scale * code + min of the formats without salient entries."""
    kind, group = spec["kind"], spec["group"] or columns
    bits = {"integer": spec.get("bits_per_code"), "binary": 1, "ternary": 2}[kind]
    width = "base3" if spec.get("packing") == "base3" else bits
    where = (n // 16, k // group, n % 16)
    scale = planes["scales"][where].float()
    if "mins" in planes:
        low = planes["mins"][where].float()
    elif kind == "integer":
        low = scale * (-(2 ** (bits - 1)) if spec["grid"] == "symmetric" else -(2**bits - 1) / 2)
    else:
        low = scale * (-0.5 if kind == "binary" else -1)
    return scale * code(planes["weight"], width, n, k, columns) + low


def salient(spec, planes, rows, columns):
    """Salient codes by (row, column)."""
    raw = planes["salient"].reshape(-1)

    def nth(i):
        return int(raw[i]) if spec["salient_bits"] == 8 else int(raw[i // 2]) >> 4 * (i % 2) & 15

    if spec["where"] == "nm":
        block = spec["by"]["block"]
        slots = product(range(rows), range(-(-columns // block)), range(4))
        at = {(n, b, i): ((n // 16), b, 4 * (n % 16) + i) for n, b, i in slots}
        index = planes["index"]
        return {
            (n, b * block + int(index[p])): int(planes["salient"][p]) for (n, b, _), p in at.items() if index[p] != 255
        }
    if spec["where"] == "offsets":
        places, read = [], 0
        for n, tile in product(range(rows), range(-(-columns // 256))):
            for _ in range(int(planes["counts"][n, tile])):
                places.append((n, 256 * tile + int(planes["offsets"][read])))
                read += 1
        return {place: nth(i) for i, place in enumerate(places)}
    order = product(range(-(-rows // 16)), range(-(-columns // 4)), range(16), range(4))
    places = [(16 * t + n, 4 * q + c) for t, q, n, c in order if 16 * t + n < rows and 4 * q + c < columns]
    marked = [p for p in places if code(planes["mask"], 1, *p, columns)]
    assert int(planes["starts"][-1]) == len(marked)
    return {place: nth(i) for i, place in enumerate(marked)}


def decoded(spec, planes, rows, columns):
    """The whole weight, float32 [R, C]."""
    low = spec["low"] if spec["kind"] == "mixed" else spec
    w = torch.tensor([[float(affine(low, planes, n, k, columns)) for k in range(columns)] for n in range(rows)])
    if spec["kind"] == "mixed":
        for (n, k), value in salient(spec, planes, rows, columns).items():
            where = (n // 16, 0, n % 16)
            w[n, k] += planes["salient_scales"][where].float() * value + planes["salient_mins"][where].float()
    return w


TABLE = json.loads((GOLDEN / "artifact" / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("row", TABLE["weights"], ids=lambda row: row["name"])
def test_the_page_is_enough_to_decode(row):
    stored = load_file(GOLDEN / "artifact" / "model.safetensors")
    planes = {k.rpartition(".")[2]: v for k, v in stored.items() if k.startswith(row["name"] + ".")}
    found = decoded(TABLE["formats"][row["format"]], planes, *row["shape"])
    assert torch.equal(found, load_file(GOLDEN / "decoded.safetensors")[row["name"]])
