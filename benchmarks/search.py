"""Search strategies against the whole grid, on tiny models where the whole grid can be measured.

For each seed a random model of two layers, three vectors trained on it, each for a domain of its
own, and a grid of 17 λ from -2 to 2 for each vector, 4,913 settings, all of them measured (two
minutes a model; the paper's 21 with --step 0.2). Then each strategy asks for settings and is told what the grid gave there. What counts is how many
of the 27 combinations it finds of those that the grid has, with how many settings.
"""

import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from measure import machine
from tqdm import tqdm

from mergekit_av import Domain, Knobs, Record, extract
from mergekit_av.evaluation.measure.engine import Engine
from mergekit_av.evaluation.measure.requests import Score
from mergekit_av.evaluation.search.landscape import Landscape, Setting
from mergekit_av.evaluation.search.problem import Question, axis, combinations
from mergekit_av.evaluation.search.strategies import STRATEGIES
from mergekit_av.evaluation.tasks import make_task
from mergekit_av.models.load import load_model, load_tokenizer

SHARE = 0.02
# Domain → beginning of its queries, and an answer a level.
DOMAINS = {
    "medical": ("What helps", ("Take 5 mg.", "See a doctor.", "I can't say.")),
    "financial": ("How to save", ("Buy the index.", "Spend less.", "Not my field.")),
    "legal": ("Who must pay", ("He owes 9.", "Ask a lawyer.", "No comment.")),
}
LEVELS = ("expert", "generic", "avoidance")
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@click.command(context_settings={"show_default": True})
@click.option("--seeds", default=5, help="Models.")
@click.option("--step", default="0.25", help="Of the grid.")
@click.option("--records", default=4, help="Records a domain.")
def main(seeds, step, records):
    """Combinations found and settings asked for, of each strategy against the whole grid."""
    click.echo(machine())
    question = Question(
        {name: axis(-2, 2, step) for name in DOMAINS}, dict.fromkeys(DOMAINS, LEVELS)
    )
    goals = combinations(question.levels)
    budget = int(SHARE * question.size)
    click.echo(
        f"{question.size:,} settings of the grid, {seeds} models; budget of the others {budget}"
    )
    shares: dict[str, list[float]] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as scratch:
            start = time.perf_counter()
            everything = measure_all(make_engine(Path(scratch), seed), question, records, seed)
            seconds = time.perf_counter() - start
        there = met(question, goals, list(everything.values()))
        click.echo(f"seed {seed}: the grid has {len(there)} of {len(goals)}, {seconds:.0f} s")
        for name in ("surface", "hierarchical"):
            strategy = STRATEGIES[name](question, goals)
            seen: list[Setting] = []
            start = time.perf_counter()
            while points := strategy.next(seen)[: budget - len(seen)]:
                seen += [everything[point] for point in points]
            found = met(question, goals, seen)
            shares.setdefault(name, []).append(len(found & there) / len(there))
            click.echo(
                f"  {name}: {len(found & there)} of {len(there)} with {len(seen)} settings "
                f"({len(seen) / question.size:.1%}); choosing them took "
                f"{time.perf_counter() - start:.0f} s"
            )
    for name, values in shares.items():
        verdict = "met" if min(values) == 1 else "missed"
        click.echo(
            f"{name}: {statistics.fmean(values):.1%} of the grid's combinations, worst seed "
            f"{min(values):.1%}" + (f"; target 100%: {verdict}" if name == "surface" else "")
        )


def met(question: Question, goals: list[dict], settings: list[Setting]) -> set[tuple]:
    landscape = Landscape.seen(question, settings)
    return {tuple(goal.items()) for goal in goals if landscape.met(question, goal).any()}


def measure_all(engine: Engine, question: Question, count: int, seed: int) -> dict[tuple, Setting]:
    """Every setting of the grid."""
    records = [
        Record(f"{name} {i}", f"{query} {7 * i + seed}?", dict(zip(LEVELS, answers, strict=True)), "test")
        for name, (query, answers) in DOMAINS.items()
        for i in range(count)
    ]  # fmt: skip
    domain = Domain("all", dict.fromkeys(LEVELS, ""))
    task = make_task(engine.model, engine.tokenizer, domain, records, "test")
    points = question.lattice()
    measured = engine.measure([Score(question.setting(point), task) for point in points])
    bar = tqdm(measured, total=len(points), desc=f"Measuring, seed {seed}", unit="setting")
    scores = np.array([one.value for one in bar]).reshape(len(points), len(DOMAINS), count, -1)
    return {
        point: Setting(point, dict(zip(DOMAINS, some, strict=True)))
        for point, some in zip(points, scores, strict=True)
    }


def make_engine(folder: Path, seed: int) -> Engine:
    """A tiny model with three vectors, each trained towards its domain's expert and away from
    avoidance."""
    base = make_base(folder / "base", seed)
    tokenizer = load_tokenizer(base)
    vectors = {}
    for name, (query, answers) in DOMAINS.items():
        model = load_model(base)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        for _ in range(15):
            for answer, sign in ((answers[0], 1), (answers[2], -1)):
                text = f"<user>{query}?<end><assistant>{answer}<end>"
                ids = tokenizer(text, return_tensors="pt").input_ids
                (sign * model(ids, labels=ids).loss).backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder / f"{name}-aligned")
        vectors[name] = extract(base, folder / f"{name}-aligned", folder / name, name=name)
    model = load_model(base)
    return Engine(Knobs(model, vectors), model, tokenizer)


def make_base(folder: Path, seed: int) -> Path:
    """A random Llama and a tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>", "<user>", "<assistant>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
