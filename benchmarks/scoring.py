"""Mean log-probabilities of responses, against the ways they are usually computed.

All sides score the same tokens with the same loaded model: `mean_log_probs`; a sequence at a time,
which is also what the scores are checked against; a padded batch at a time with all its logits, as
most scripts do it; and the engine of lm-evaluation-harness's `HFLM.loglikelihood`, where it is
installed (`pip install lm-eval`). All but the last include the tokenization.
"""

import contextlib
import io
import time
from collections.abc import Callable

import click
import torch
from measure import Run, interleaved, machine, ratios, spread, verdict

from mergekit_av import load_domain, load_records, mean_log_probs
from mergekit_av.models.chat import encode
from mergekit_av.models.default_base import base_or_default
from mergekit_av.models.load import load_model, load_tokenizer

OURS, REFERENCE = "mean_log_probs", "one at a time"
TARGET = 0.5


@click.command(context_settings={"show_default": True})
@click.option("--repeat", type=click.IntRange(min=1), default=5, help="Measured runs of each side.")
@click.option("--base", help="Base model: a folder or Hub id.  [default: the default base]")
@click.option("--domain", default="medical", help="Whose test records are scored.")
@click.option("--limit", type=click.IntRange(min=1), help="So many records only.")
@click.option("--dtype", default="float32", help="The model's.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, help="Of the padded batches.")
def main(repeat, base, domain, limit, dtype, batch_size):
    """Time of scoring test records with `mean_log_probs`, against three other ways."""
    model, tokenizer = (load(base_or_default(base)) for load in (load_model, load_tokenizer))
    model = model.to(getattr(torch, dtype))
    records = [record for record in load_records(load_domain(domain)) if record.split == "test"]
    records = records[:limit]

    def pairs() -> list[tuple[list[int], list[int]]]:
        """Prompt and response of every record and level, as token ids."""
        encoded = (encode(tokenizer, r.prompt, list(r.responses.values())) for r in records)
        return [(prompt, response) for prompt, responses in encoded for response in responses]

    ways: dict[str, Callable[[], torch.Tensor]] = {
        OURS: lambda: mean_log_probs(model, tokenizer, records).flatten(),
        REFERENCE: lambda: padded(model, pairs(), 1),
        f"padded, batch {batch_size}": lambda: padded(model, pairs(), batch_size),
    }
    try:
        ways["lm-eval"] = harness(model, tokenizer, pairs(), batch_size)
    except ImportError:
        click.echo("lm-eval is not installed: left out")
    scores: dict[str, torch.Tensor] = {}

    def timed(name: str) -> Run:
        start = time.perf_counter()
        scores[name] = ways[name]()  # on the CPU: the device has finished
        return Run(time.perf_counter() - start)

    runs = interleaved({name: lambda name=name: timed(name) for name in ways}, repeat)
    seconds = {name: [run.seconds for run in some] for name, some in runs.items()}

    click.echo(machine())
    click.echo(
        f"{base or 'SmolLM2-135M-Instruct (default base)'}, {dtype} on {model.device}, "
        f"{len(records)} test records of {domain}, {repeat} rounds"
    )
    click.echo(work(model, pairs()))
    for name, values in seconds.items():
        rate = spread([len(records) / value for value in values])
        error = (scores[name] - scores[REFERENCE]).abs().max().item()
        click.echo(f"{name}: {spread(values)} s, {rate} records/s, off by {error:.1e} nats")
    for name in list(ways)[1:]:
        ratio = ratios(seconds[OURS], seconds[name])
        click.echo(f"  time ratio to {name}: {spread(ratio)}, {verdict(ratio, TARGET)}")


def work(model, pairs: list[tuple[list[int], list[int]]]) -> str:
    """What there is to compute: the ratio of the multiplications is about what times can reach.

    Counted are the weights that a token meets, in the layers and in the output layer; attention,
    which is left out, differs little.
    """
    apart = sum(len(prompt) + len(response) for prompt, response in pairs)
    responses = sum(len(response) for _, response in pairs)
    once = sum(map(len, {tuple(prompt) for prompt, _ in pairs})) + responses
    head = model.get_output_embeddings().weight.numel()
    layers = sum(value.numel() for value in model.get_decoder().layers.parameters())
    share = (once * layers + responses * head) / (apart * (layers + head))
    return (
        f"tokens: {apart} one at a time, {once} with each prompt once, {responses} predicted; "
        f"multiplications: {share:.2f} of those one at a time"
    )


@torch.inference_mode()
def padded(model, pairs: list[tuple[list[int], list[int]]], size: int) -> torch.Tensor:
    """Mean log-probability of each response, from all logits of batches padded on the right."""
    means = []
    for start in range(0, len(pairs), size):
        some = pairs[start : start + size]
        longest = max(len(prompt) + len(response) for prompt, response in some)
        ids = torch.zeros(len(some), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, (prompt, response) in enumerate(some):
            length = len(prompt) + len(response)
            ids[row, :length] = torch.tensor(prompt + response)
            mask[row, :length] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, (prompt, response) in enumerate(some):
            first, end = len(prompt), len(prompt) + len(response)
            log_probs = torch.log_softmax(logits[row, first - 1 : end - 1].float(), dim=1)
            means.append(log_probs.gather(1, ids[row, first:end, None]).mean())
    return torch.stack(means).cpu()


def harness(model, tokenizer, pairs, size: int) -> Callable[[], torch.Tensor]:
    """lm-evaluation-harness on token ids: given text, it takes a prompt's last line break from it."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, max_length=2**16)
    # The two texts are only the key of a cache that is off.
    requests = [((str(i), str(i)), *pair) for i, pair in enumerate(pairs)]
    lengths = torch.tensor([len(response) for _, response in pairs])

    def score() -> torch.Tensor:
        with contextlib.redirect_stderr(io.StringIO()):
            found = lm._loglikelihood_tokens(requests, disable_tqdm=True)
        return torch.tensor([total for total, _ in found]) / lengths

    return score


if __name__ == "__main__":
    main()
