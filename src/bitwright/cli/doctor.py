"""`bitwright doctor`."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bitwright import __version__
from bitwright.cli.output import Json, print_json

LIBRARIES = ("torch", "transformers", "safetensors", "numpy")
FEATURES = (
    "avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512vbmi",
    "avx512_vbmi2", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve",
)  # fmt: skip


def doctor(json: Json = False) -> None:
    """Say what this installation has, what it lacks, and which code multiplies."""
    told = _facts()
    if json:
        print_json(told)
        return
    print(f"bitwright {told['bitwright']}, Python {told['python']} on {told['platform']}, {told['cores']} processors")
    print(", ".join(f"{name} {found or 'MISSING'}" for name, found in told["libraries"].items()))
    print("processor features: " + (" ".join(told["cpu_features"]) or "not known"))
    kernels = told["kernels"]
    print(f"compiled kernels: {kernels['level'] or 'not used'} ({kernels['reason']})")
    for name, extra in told["extras"].items():
        lacking = ", ".join(extra["missing"])
        print(f"extra {name}: " + (f"missing {lacking}; {extra['install']}" if lacking else "installed"))
    if not told["installed"]:
        print("bitwright itself is not installed, it runs from its source folder: pip install -e .")


def _facts() -> dict[str, Any]:
    return {
        "bitwright": __version__,
        "installed": _version("bitwright") is not None,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cpu_features": _cpu_features(),
        "kernels": _kernels(),
        "extras": _extras(),
    }


def _kernels() -> dict[str, Any]:
    if find_spec("torch") is None:
        return {"extension": False, "used": False, "level": None, "reason": "torch is not installed: pip install torch"}
    from bitwright.runtime import native

    usable, reason = native.available()
    extension = find_spec("bitwright._core") is not None
    return {"extension": extension, "used": usable, "level": native.level(), "reason": reason}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_features() -> list[str]:
    """Those that matter to the kernels, as Linux names them."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return []
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", path.read_text(), re.MULTILINE)
    present = set(found.group(1).split()) if found else set()
    return [name for name in FEATURES if name in present]


def _extras() -> dict[str, dict[str, Any]]:
    """Extras of the installed package, with what each still lacks."""
    try:
        lines = metadata("bitwright").get_all("Requires-Dist") or []
    except PackageNotFoundError:
        return {}
    wanted: dict[str, list[str]] = {}
    for line in lines:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        name = re.match(r"[\w.-]+", line)
        if extra and name and name.group() != "bitwright":
            wanted.setdefault(extra.group(1), []).append(name.group())
    return {
        extra: {
            "missing": [name for name in names if _version(name) is None],
            "install": f"pip install 'bitwright[{extra}]'",
        }
        for extra, names in sorted(wanted.items())
    }
