"""Models and prompts of which answers are written."""

import torch
from tiny import make_model, make_tokenizer

from mergekit_av.data.records import Record
from mergekit_av.models.load import load_model, load_tokenizer

PROMPTS = ["Hi", "What helps against a cold that has lasted for three weeks?", "Why? " * 9]


def records(prompts) -> list[Record]:
    return [
        Record(str(i), prompt, {"a": "Yes.", "b": "No."}, "test")
        for i, prompt in enumerate(prompts)
    ]


def asked(text: str):
    return ({"role": "user", "content": text},)


def loud(folder, architecture: str = "llama"):
    """A model whose every token depends on all before it: its weights are larger than usual."""
    make_model(folder, architecture, tied=False, dtype=torch.float32)
    make_tokenizer(folder)
    model = load_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
    return model, load_tokenizer(folder)
