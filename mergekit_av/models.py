"""From what a user names, a folder or a Hub id, to a folder, a tokenizer, a model."""

import json
import os
import re
from pathlib import Path

from .errors import AVError

# What a model needs besides pickles and code, neither of which is ever fetched.
FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


def resolve(source: str | os.PathLike, revision: str | None = None) -> Path:
    """The folder of a model or an alignment vector: itself, or the Hub repository's snapshot.

    Args:
        source: a folder, or a Hub id, with `@revision` where one is meant.

    Raises:
        AVError: there is neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = os.fspath(source)
    if not HUB_ID.fullmatch(name):
        raise AVError(f"there is no folder {name}")
    repo, _, at_revision = name.partition("@")

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repo, revision=revision or at_revision or None, allow_patterns=FILES
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AVError(
            f"{name} is no folder here, and the Hub has not given it: {reason}"
        ) from error
    return Path(found)


def read_json(path: Path) -> dict:
    """A JSON object from a file, or one line that says why not."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise AVError(f"{path.parent} has no {path.name}") from None
    except (ValueError, OSError) as error:
        raise AVError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise AVError(f"{path} must hold a JSON object")
    return content


def load_model(source: str | os.PathLike, dtype: str = "float32", device: str | None = None):
    """A transformers causal LM in evaluation mode; remote code is never run.

    Args:
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        device: a torch device; by default the accelerator if there is one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = resolve(source)
    refuse_vector(folder)
    read_json(folder / "config.json")
    device = device or _default_device()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype), use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise AVError(
            f"{source} is no causal LM that transformers can load: {_first_line(error)}"
        ) from error
    return model.to(device).eval()


def load_tokenizer(source: str | os.PathLike):
    """The model's tokenizer, with a padding token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(source))
    except (OSError, ValueError, ImportError) as error:
        raise AVError(f"{source} has no tokenizer that loads: {_first_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def refuse_vector(folder: Path) -> None:
    """transformers would load an AV folder as a model without complaint; nobody means that."""
    if (folder / "alignment_vector.json").exists():
        raise AVError(f"{folder} is an alignment vector, not a model: merge it with its base first")


def _default_device() -> str:
    import torch

    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None else "cpu"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
