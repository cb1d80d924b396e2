"""What a model writes, as opposed to which of several given answers it prefers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from mergekit_av.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 80


@torch.inference_mode()
def greedy_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    records: Sequence[Record],
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> dict[str, str]:
    """Record id → the model's greedy answer to the record's prompt, cut at `max_new_tokens`."""
    answers = {}
    for record in tqdm(records, desc="Answering", unit="record"):
        if isinstance(record.prompt, str):
            inputs = tokenizer(record.prompt, return_tensors="pt")
        else:
            inputs = tokenizer.apply_chat_template(
                list(record.prompt),
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
        prompt, mask = (inputs[key].to(model.device) for key in ("input_ids", "attention_mask"))
        output = model.generate(
            prompt, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens
        )
        new = output[0, prompt.shape[1] :]
        answers[record.id] = tokenizer.decode(new, skip_special_tokens=True).strip()
    return answers
