"""What a model writes, as opposed to which of several given answers it prefers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from mergekit_av.data.records import Record

from .chat import generation_prompt
from .decoding import Decoding
from .vocabulary import check_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 8


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: without special tokens.
        ended: whether the model ended it itself, before it was cut.
    """

    text: str
    ended: bool


@torch.inference_mode()
def write_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    records: Sequence[Record],
    decoding: Decoding,
    progress: bool = True,
) -> dict[str, Answer]:
    """Record id → the model's answer to the record's whole prompt, as the chat template ends it.

    Several are written at a time, their prompts padded on the left, and none depends on another: what
    is drawn for an answer depends on the seed and the record's id. An answer ends with one of the
    model's own end tokens or the tokenizer's, which ends a turn in training and scoring.

    Raises:
        AVError: a token of a prompt has no embedding.
    """
    ends = _end_tokens(model, tokenizer)
    # A penalty on what the prompt says would act on the padding as well.
    size = 1 if "repetition_penalty" in decoding.sampling else BATCH
    answers = {}
    with tqdm(total=len(records), desc="Answering", unit="record", disable=not progress) as bar:
        for start in range(0, len(records), size):
            batch = records[start : start + size]
            prompts = [generation_prompt(tokenizer, record.prompt) for record in batch]
            for record, prompt in zip(batch, prompts, strict=True):
                check_ids(model, tokenizer, prompt, f"the prompt of record {record.id}")
            longest = max(map(len, prompts))
            pads = [longest - len(prompt) for prompt in prompts]
            rows = [[0] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)]
            mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
            output = model.generate(
                torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                eos_token_id=ends or None,
                pad_token_id=0,  # any: what is behind an answer's end is cut off
                **decoding.arguments(record.id for record in batch),
            )
            for record, ids in zip(batch, output[:, longest:].tolist(), strict=True):
                length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
                text = tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
                answers[record.id] = Answer(text, ended=length < len(ids))
            bar.update(len(batch))
    return answers


def _end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """None, one or several: models differ."""
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return sorted(ends - {None})
