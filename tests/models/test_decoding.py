"""--gen-kwargs: answers written otherwise than greedily."""

import json
from collections import Counter
from dataclasses import replace

import click
import pytest
import torch
from answering import PROMPTS, asked, loud, records
from click.testing import CliRunner
from scipy.stats import chisquare

from mergekit_av.cli.options.decoding import decoding_options
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.generation import write_answers


@click.command()
@decoding_options(12)
def show(decoding):
    """Shows."""
    click.echo(json.dumps([decoding.max_new_tokens, dict(decoding.sampling), decoding.seed]))


def parsed(*arguments: str) -> list:
    result = CliRunner().invoke(show, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_what_is_typed_reaches_generate():
    assert parsed() == [12, {}, 0]
    assert parsed("--max-new-tokens", "3", "--gen-kwargs", "do_sample=true, top_p=0.9,seed=7") == [
        3, {"do_sample": True, "top_p": 0.9}, 7,
    ]  # fmt: skip
    assert parsed("--gen-kwargs", "do_sample=true,temperature=1,top_k=5")[1] == {
        "do_sample": True, "temperature": 1.0, "top_k": 5,
    }  # fmt: skip
    assert parsed("--gen-kwargs", "repetition_penalty=1.1")[1] == {"repetition_penalty": 1.1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("temperature", "NAME=VALUE"),
        ("num_beams=4", "NAME one of do_sample"),
        ("do_sample=true,do_sample=true", "given twice"),
        ("do_sample=maybe", "must be of type bool"),
        ("do_sample=true,seed=0.5", "must be of type int"),
        ("do_sample=true,temperature=0", "strictly positive"),
        ("do_sample=true,top_p=3", "top_p"),
        ("do_sample=true,top_p=.nan", "must be finite"),
        ("do_sample=true,top_p=[", "top_p"),
        ("do_sample=true,top_k=1.5", "top_k"),
        ("repetition_penalty=-1", "strictly positive"),
        ("temperature=0.7", "do_sample"),  # transformers would leave it unused
        ("seed=1", "do_sample=true"),
        ("repetition_penalty=1.2,seed=1", "do_sample=true"),
        ("do_sample=false,seed=1", "do_sample=true"),
    ],
)
def test_what_generate_would_refuse_or_leave_unused_is_one_line(text, says):
    result = CliRunner().invoke(show, ["--gen-kwargs", text])
    assert result.exit_code == 2 and result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and says in last, result.stderr


SAMPLED = Decoding(12, {"do_sample": True, "temperature": 0.7})


def test_answers_are_drawn_as_often_as_they_are_probable(tmp_path):
    model, tokenizer = loud(tmp_path / "model")
    [record] = records(["Take plenty of"])
    many = [replace(record, id=str(number)) for number in range(2000)]
    decoding = Decoding(1, {"do_sample": True, "temperature": 0.7, "top_k": 3})
    written = Counter(
        answer.text
        for answer in write_answers(model, tokenizer, many, decoding, progress=False).values()
    )
    ids = tokenizer(record.prompt, return_tensors="pt")
    with torch.inference_mode():
        # In float64: chisquare wants shares that add up, and float32's do on some processors only.
        top = (model(**ids).logits[0, -1].double() / 0.7).topk(3)
    expected = Counter()
    for token, share in zip(top.indices, top.values.softmax(-1), strict=True):
        expected[tokenizer.decode(token).strip()] += len(many) * share.item()
    assert written.keys() <= expected.keys()
    assert chisquare([written[text] for text in expected], list(expected.values())).pvalue > 1e-4


@pytest.mark.parametrize("sampling", [SAMPLED.sampling, {"repetition_penalty": 1.5}])
def test_an_answer_depends_on_no_other(tmp_path, sampling):
    model, tokenizer = loud(tmp_path / "model")
    asks = records([asked(text) for text in PROMPTS])
    decoding = Decoding(12, sampling)
    together = write_answers(model, tokenizer, asks, decoding, progress=False)
    for record in reversed(asks):
        alone = write_answers(model, tokenizer, [record], decoding, progress=False)
        assert alone[record.id] == together[record.id]
    assert together != write_answers(model, tokenizer, asks, Decoding(12), progress=False)


def test_the_seed_counts_and_the_callers_generator_stays_as_it_was(tmp_path):
    model, tokenizer = loud(tmp_path / "model")
    asks = records([asked(text) for text in PROMPTS])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = write_answers(model, tokenizer, asks, SAMPLED, progress=False)
    assert torch.equal(torch.rand(3), expected)
    other = Decoding(12, SAMPLED.sampling, seed=1)
    assert write_answers(model, tokenizer, asks, other, progress=False) != first
