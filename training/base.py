"""The base of a training, loaded once for all that looks at it before it is trained."""

import logging
from pathlib import Path
from typing import NamedTuple

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mergekit_av.hub.source import resolve
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.models.chat import ensure_chat_template
from mergekit_av.models.load import load_model, load_tokenizer, refuse_codes, refuse_vector
from mergekit_av.models.vocabulary import ensure_padding

from .lora import Arguments, base_dtype, quantization
from .restore import check_restorable, check_whole

log = logging.getLogger(__name__)


class Base(NamedTuple):
    """Hold a base that is to be trained.

    Attributes:
        name: as the user wrote it.
        model: on the CPU, in float32 where all its weights are trained; else see `base_dtype`, and
            `quantization`.
        tokenizer: with a chat template, and a padding token that the model has an embedding for.
    """

    name: str
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_base(name: str, arguments: Arguments) -> Base:
    """Load a base, from a folder or the Hub.

    Raises:
        AVError: it or its tokenizer does not load, it is an alignment vector, or no vector could be made
            of what is trained of it.
    """
    with PartialState().main_process_first():
        folder = resolve(name)
    refuse_vector(folder)
    tokenizer = load_tokenizer(folder)
    notices = [ensure_chat_template(tokenizer)]
    checkpoint = Checkpoint(folder)
    refuse_codes(checkpoint)
    check_whole(folder)
    quantized = quantization(arguments)
    device = "cpu" if quantized is None else str(PartialState().device)
    model = load_model(folder, base_dtype(arguments, checkpoint), device, quantized)
    if not arguments.use_peft:
        check_restorable(model, folder)
    notices.append(ensure_padding(model, tokenizer))
    if PartialState().is_main_process:
        for notice in filter(None, notices):
            log.warning("%s: %s", name, notice)
    return Base(name, folder, model, tokenizer)
