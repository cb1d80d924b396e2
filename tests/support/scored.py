"""Records and models whose log-probabilities are computed the slow way."""

import torch
from tiny import make_model
from transformers import AutoModelForCausalLM

from mergekit_av.data.records import Record

SHORT = Record(
    "short", ({"role": "user", "content": "Hi"},), {"a": "No.", "b": "Yes, yes.", "c": "W"}, "test"
)


UNEVEN = Record(
    "uneven", "Count to a hundred.", {"a": " No.", "b": " one two three" * 90, "c": " 1"}, "test"
)


def opinionated(folder, architecture="llama", dtype=torch.float32, **options):
    """A tiny model whose next-token distributions are far from flat, so that a slip shows."""
    model = AutoModelForCausalLM.from_pretrained(
        make_model(folder / "model", architecture, dtype=torch.float32, **options)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model.to(dtype).eval()


@torch.no_grad()
def slow(model, tokenizer, record: Record) -> list[float]:
    """Mean log-probability of each response: one sequence at a time, all logits, float64."""
    means = []
    for response in record.responses.values():
        if isinstance(record.prompt, str):
            prompt = tokenizer(record.prompt).input_ids
            whole = tokenizer(record.prompt + response + tokenizer.eos_token).input_ids
        else:
            turns = [*record.prompt, {"role": "assistant", "content": response}]
            prompt = tokenizer.apply_chat_template(
                list(record.prompt), add_generation_prompt=True, return_dict=True
            )["input_ids"]
            whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
        assert whole[: len(prompt)] == prompt
        logits = model(input_ids=torch.tensor([whole])).logits[0].double()
        total = 0.0
        for position in range(len(prompt), len(whole)):
            log_probs = torch.log_softmax(logits[position - 1], dim=0)
            total += log_probs[whole[position]].item()
        means.append(total / (len(whole) - len(prompt)))
    return means


def expected(model, tokenizer, records) -> torch.Tensor:
    return torch.tensor([slow(model, tokenizer, record) for record in records])
