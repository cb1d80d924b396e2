"""What decides figures beside the data: versions of packages, and the machine."""

import contextlib
import importlib.metadata
import os
import platform

PACKAGES = ("mergekit-av", "mergekit", "torch", "transformers")


def versions(*further: str) -> dict[str, str]:
    """Return the versions of the packages that decide every figure, and of further installed ones."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in further:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine(device: str) -> str:
    """Return what computes, in words, e.g. `cpu, x86_64, 2 cores`."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{device}, {platform.machine()}, {os.cpu_count()} cores"
