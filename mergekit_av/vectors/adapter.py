"""PEFT adapters as aligned models: merged with their base, as a whole checkpoint for a while."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mergekit_av.errors import AVError, first_line
from mergekit_av.hub.trust import refuse_adapter_code
from mergekit_av.io.checkpoint import INDEX, SINGLE
from mergekit_av.io.json import read_json
from mergekit_av.models.load import load_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter and no whole model."""
    return (folder / CONFIG).is_file() and not any((folder / n).is_file() for n in (SINGLE, INDEX))


@contextlib.contextmanager
def merged(base: Path, adapter: Path, beside: Path) -> Iterator[Path]:
    """Yield the model that an adapter makes of its base: a folder that is there for the block.

    Memory and disk: a float32 copy of the base.

    Args:
        beside: the folder is made next to this one.

    Raises:
        AVError: it is no adapter that PEFT can merge with this base.
    """
    from peft import PeftModel

    if not (adapter / WEIGHTS).is_file():
        raise AVError(f"{adapter} has no {WEIGHTS}: save the adapter as safetensors")
    refuse_adapter_code(read_json(adapter / CONFIG), adapter / CONFIG)
    model = load_model(base, "float32", "cpu")
    try:
        model = PeftModel.from_pretrained(model, adapter, torch_device="cpu")
        model = model.merge_and_unload(safe_merge=True)
    except Exception as error:  # of PEFT's many kinds of adapters each in its own way
        raise AVError(
            f"{adapter} is no adapter that PEFT can merge with {base}: {first_line(error)}"
        ) from error
    beside = beside.absolute()
    with tempfile.TemporaryDirectory(prefix=f".{beside.name}-merged-", dir=beside.parent) as folder:
        model.save_pretrained(folder)
        del model
        yield Path(folder)
