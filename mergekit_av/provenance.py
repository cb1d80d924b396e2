"""What decides figures beside the data: versions of packages, and the machine."""

import importlib.metadata
import os
import platform

PACKAGES = ("mergekit-av", "mergekit", "torch", "transformers")


def versions() -> dict[str, str]:
    """Of the packages that decide the numbers."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def machine(device: str) -> str:
    """What measures, in words."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{device}, {platform.machine()}, {os.cpu_count()} cores"
