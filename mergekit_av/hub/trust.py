"""What comes from strangers: refused before anything of it is used, and never executed.

Only JSON and safetensors are read. What the tensors and the metadata say of one another is checked
in `AlignmentVector.check`; how much a file may take, in `limits`.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergekit_av.errors import AVError
from mergekit_av.io.yaml import every

# What transformers computes attention and experts with by itself. Any other name is, or may be, a
# repository whose code it would fetch and import. Of a flash attention that is not installed it takes
# a kernel from the Hub, too: a model is loaded without what its configuration says of those.
FLASH = re.compile(r"(paged\|)?flash_attention_\d")
ATTENTION = re.compile(rf"(paged\|)?(eager|sdpa|flex_attention)|{FLASH.pattern}")
EXPERTS = re.compile(r"eager|batched_mm|grouped_mm")
IMPLEMENTATIONS = {"attn_implementation": ATTENTION, "experts_implementation": EXPERTS}
# What names code, or files that say something else than the one that is looked at.
OF_CODE = (
    "auto_map",
    "configuration_files",
    "custom_generate",
    "custom_pipelines",
    "trust_remote_code",
    "use_kernels",
    "kernel_config",
    "kernel_mapping",
)
# Methods of quantisation whose code is in a package that the user has installed.
QUANTISATIONS = (
    "awq",
    "bitsandbytes",
    "compressed-tensors",
    "gptq",
    "hqq",
    "quanto",
    "torchao",
)
# PEFT's adapters that are nothing but weights which can be merged with their base's.
ADAPTERS = (
    "LORA",
    "ADALORA",
    "BOFT",
    "C3A",
    "DELORA",
    "FOURIERFT",
    "GRALORA",
    "HRA",
    "IA3",
    "LN_TUNING",
    "LOHA",
    "LOKR",
    "MISS",
    "OFT",
    "RANDLORA",
    "ROAD",
    "SHIRA",
    "TRAINABLE_TOKENS",
    "VBLORA",
    "VERA",
    "WAVEFT",
)
# Endings under which pickles are known, for the message; what may lie in a folder is HARMLESS.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Beside names without an ending, such as LICENSE or .gitattributes. The last line is what
# `hf download`, git, and a command of ours that was killed leave.
HARMLESS = {
    ".csv",
    ".gguf",
    ".gif",
    ".jinja",
    ".jpeg",
    ".jpg",
    ".json",
    ".jsonl",
    ".log",
    ".md",
    ".pdf",
    ".png",
    ".safetensors",
    ".svg",
    ".tsv",
    ".txt",
    ".webp",
    ".yaml",
    ".yml",
    ".idx",
    ".incomplete",
    ".lock",
    ".metadata",
    ".pack",
    ".rev",
    ".sample",
    ".tag",
    ".tmp",
}
# Of sentencepiece; any other .model may be a pickle.
SENTENCEPIECE = "tokenizer.model"
SNAPSHOTS = "snapshots"


def refuse_code(config: Mapping[str, Any], where: Path, known: bool = False) -> None:
    """Raise AVError for a config.json that names code to run, its own or of a repository.

    Args:
        known: transformers has the architecture, and leaves an `auto_map` alone.
    """
    if known:
        config = {key: value for key, value in config.items() if key != "auto_map"}
    for key, value in every(config):
        if key == "auto_map":
            raise AVError(
                f"{where} names code of its own (`auto_map`), which is never run: take a model whose "
                "architecture transformers has, and remove the entry"
            )
        if key in OF_CODE and value:
            raise AVError(f"{where} names code or files elsewhere (`{key}`): remove the entry")
        for part, good in IMPLEMENTATIONS.items():
            if isinstance(key, str) and key.strip("_").startswith(part):
                for name in _names(value):
                    if not good.fullmatch(name):
                        raise AVError(
                            f"{where} names code of a repository (`{key}: {name}`), which is never "
                            "run: remove the entry"
                        )


def asks_for_flash(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration that `refuse_code` lets pass asks for flash attention."""
    return any(
        FLASH.fullmatch(name)
        for key, value in every(config)
        if isinstance(key, str) and key.strip("_").startswith("attn_implementation")
        for name in _names(value)
    )


def _names(value: Any) -> list[str]:
    """Return the implementations that a configuration names: one, or one for each of its parts."""
    parts = [value, *(part for _, part in every(value))]
    return [str(part) for part in parts if not isinstance(part, bool | dict | list | None)]


def refuse_adapter_code(config: Mapping[str, Any], where: Path) -> None:
    """Raise AVError for an adapter_config.json that names modules to import, or other files to load."""
    kind = config.get("peft_type")
    if kind not in ADAPTERS:
        raise AVError(f"{where} is of an adapter that is not merged with a base: {kind!r}")
    libraries = [config.get("megatron_core") or "megatron.core"]
    libraries += [library for key, library in every(config) if key == "parent_library"]
    for library in libraries:
        if not re.fullmatch(r"(transformers|peft)(\.\w+)*|megatron\.core", str(library)):
            raise AVError(f"{where} names code to import ({library}), which is never run")
    for key in ("megatron_config", "layer_replication"):
        if config.get(key):
            raise AVError(f"{where} has `{key}`, which is not supported")


def refuse_foreign_files(folder: Path) -> None:
    """Raise AVError for a folder with files of kinds that have no place in it, of which some run code
    when they are opened, or with links that lead out of it.

    Of a Hub repository those count as well that are in it and were not fetched.
    """
    here = sorted(folder.rglob("*"))
    refuse_links(here, folder)
    files = {path for path in here if not path.is_dir()}
    for path in sorted(files | {folder / name for name in _in_repository(folder)}):
        ending = path.suffix.lower()
        numbered = ending[1:].isdigit()  # LICENSE-2.0
        if not ending or numbered or ending in HARMLESS or path.name == SENTENCEPIECE:
            continue
        if ending in PICKLES:
            raise AVError(f"{path} may be a pickle, which runs code when it is opened: remove it")
        what = "is code, which" if ending == ".py" else "is of a kind that"
        raise AVError(f"{path} {what} has no place here: remove it")


def _in_repository(folder: Path) -> list[str]:
    """Return all files of the Hub repository that a folder is a snapshot of, where its list is
    cached."""
    if folder.parent.name != SNAPSHOTS:
        return []
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    cache, name = folder.parents[2], folder.parents[1].name
    repo = name.removeprefix("models--").replace("--", "/")
    try:
        files = get_cached_repo_tree(repo, revision=folder.name, cache_dir=cache)
    except (CachedRepoTreeNotFoundError, OSError, ValueError):
        return []
    return [file.path for file in files]


def refuse_links(paths: Iterable[Path], folder: Path) -> None:
    """Raise AVError for a link that leads out of a folder.

    A snapshot in the Hub's cache consists of links to blobs elsewhere in the cache.
    """
    home = folder.resolve()
    if home.parent.name == SNAPSHOTS:
        home = home.parents[2]
    for path in paths:
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise AVError(f"{path} is a link that leads out of its folder: put the file there")
