"""`medgen doctor`: what this machine and installation can do."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Any

import click

from medgen.cli.options import as_json, examples

LIBRARIES = ("torch", "torchvision", "monai", "diffusers", "accelerate", "nibabel", "xformers")


@click.command(epilog=examples("medgen doctor", "medgen doctor --json"))
@as_json
def doctor(as_json: bool) -> None:
    """What this machine and installation can do."""
    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for key, value in report.items():
        click.echo(f"{key:<12} {value}")


def examine() -> dict[str, Any]:
    """Versions, devices, cores, memory and where data is looked for."""
    import torch

    from medgen import __version__
    from medgen.nn.precision import bfloat16_speedup

    found: dict[str, Any] = {"medgen": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "not installed"
    devices = ["cpu"]
    devices += [
        f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    found["devices"] = ", ".join(devices)
    found["cores"] = os.cpu_count()
    found["bfloat16"] = (
        f"{bfloat16_speedup():.1f} x float32 on the CPU (train.precision=bf16 if well above 1)"
    )
    found["memory"] = f"{_memory() / 2**30:.1f} GB" if _memory() else "unknown"
    found["MEDGEN_DATA"] = os.environ.get("MEDGEN_DATA", "not set")
    return found


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
