"""From what a user names, a folder or a Hub id, to a folder, a tokenizer, a model."""

import functools
import json
import os
import re
from pathlib import Path

from .errors import AVError
from .hub_errors import hub_errors
from .trust import SNAPSHOTS, refuse_code

# What a model needs besides pickles and code, neither of which is ever fetched.
FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
OWNER_AND_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def resolve(
    source: str | os.PathLike, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """The folder of a model or an alignment vector: itself, or the Hub repository's snapshot.

    Args:
        source: a folder, or a Hub id, with `@revision` where one is meant.
        token: for a private repository; by default the one that the user has logged in with.

    Raises:
        AVError: there is neither, the Hub does not give it, or only a part of it is in the cache.
    """
    folder = Path(os.path.expanduser(source))
    if folder.is_dir():
        return folder
    name = os.fspath(source)
    if not HUB_ID.fullmatch(name):
        raise AVError(f"there is no folder {name}")
    repo, _, at_revision = name.partition("@")

    from huggingface_hub import snapshot_download

    with hub_errors(f"{name} is no folder here, and the Hub has not given it", token):
        found = snapshot_download(
            repo, revision=revision or at_revision or None, allow_patterns=FILES, token=token
        )
    return Path(found)


def revision_of(folder: Path) -> str | None:
    """The commit of which a folder is the snapshot; None for any other folder."""
    return folder.name if folder.parent.name == SNAPSHOTS else None


def hub_name(name: str) -> str | None:
    """The name where it is a Hub id; None where it can only be a folder, or is one here."""
    is_id = OWNER_AND_NAME.fullmatch(name) and not Path(name).is_dir()
    return name if is_id else None


def read_json(path: Path) -> dict:
    """A JSON object from a file, or one line that says why not."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise AVError(f"{path.parent} has no {path.name}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise AVError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise AVError(f"{path} must hold a JSON object")
    return content


def load_model(source: str | os.PathLike, dtype: str = "float32", device: str | None = None):
    """A transformers causal LM in evaluation mode; remote code is never run.

    Args:
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own (the
            widest of them).
        device: a torch device; by default the accelerator if there is one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from .checkpoint import Checkpoint

    folder = resolve(source)
    refuse_vector(folder)
    _refuse_unknown_code(read_json(folder / "config.json"), folder)
    infos = Checkpoint(folder)  # says in one line what is wrong with the files
    device = device or default_device()
    dtype = own_dtype(infos) if dtype == "auto" else dtype
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,  # else transformers asks on the terminal
            output_loading_info=True,
        )
    except Exception as error:  # a config.json has no end of ways to be wrong
        raise AVError(
            f"{source} is no causal LM that transformers can load: {first_line(error)}"
        ) from error
    if missing := sorted(loaded["missing_keys"]):
        # transformers would fill them with random numbers.
        raise AVError(f"{source} has no tensor {missing[0]}, which its config.json asks for")
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise AVError(f"cannot use the device {device!r}: {first_line(error)}") from error


def own_dtype(checkpoint) -> str:
    """What a checkpoint's weights are in; the widest of several. transformers' own "auto" would
    believe config.json."""
    import torch

    # Old checkpoints hold `inv_freq`, which is no weight, in float32 whatever the weights are in.
    floating = [
        info.dtype
        for name, info in checkpoint.items()
        if info.dtype.is_floating_point and not name.endswith("inv_freq")
    ]
    return str(functools.reduce(torch.promote_types, floating)).removeprefix("torch.")


def load_shape(source: str | os.PathLike, dtype: str = "float32"):
    """What `load_model` loads, without its weights: it takes no memory and computes nothing.

    Raises:
        AVError: config.json is of no causal LM.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from .checkpoint import Checkpoint

    folder = resolve(source)
    _refuse_unknown_code(read_json(folder / "config.json"), folder)
    dtype = own_dtype(Checkpoint(folder)) if dtype == "auto" else dtype
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except Exception as error:  # a config.json has no end of ways to be wrong
        raise AVError(f"{source} is no causal LM: {first_line(error)}") from error


def load_tokenizer(source: str | os.PathLike):
    """The model's tokenizer, with a padding token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(source), trust_remote_code=False)
    except AVError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more precise
        raise AVError(f"{source} has no tokenizer that loads: {first_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def buffer_names(model) -> set[str]:
    """The last parts of the names that only buffers of a model have, e.g. `inv_freq`.

    Old checkpoints hold such tensors, under paths that the model no longer has; nothing reads them.
    """
    buffers, parameters = (
        {name.rpartition(".")[2] for name, _ in tensors}
        for tensors in (model.named_buffers(), model.named_parameters())
    )
    return buffers - parameters


def refuse_vector(folder: Path) -> None:
    """transformers would load an AV folder as a model without complaint; nobody means that."""
    if (folder / "alignment_vector.json").exists():
        raise AVError(f"{folder} is an alignment vector, not a model: merge it with its base first")


def _refuse_unknown_code(config: dict, folder: Path) -> None:
    """Raise AVError for an architecture that is known to the code in its own repository alone."""
    from transformers import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        refuse_code(config, folder / "config.json")


def default_device() -> str:
    """The accelerator if there is one, else the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None else "cpu"


def first_line(error: Exception) -> str:
    """The first line of an error's message; the second as well where the first announces it."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 1 + lines[0].rstrip().endswith(":")])
