"""Asking in words, and what the words cost."""

import pytest
from sweeping import few

from mergekit_av.data.records import Record
from mergekit_av.evaluation.accuracy import evaluate
from mergekit_av.evaluation.measure.cache import Cache, Identity
from mergekit_av.evaluation.measure.engine import Engine
from mergekit_av.evaluation.measure.store import Store
from mergekit_av.evaluation.sweep.prompting import baseline, costs
from mergekit_av.evaluation.tasks import asking_for, make_task
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.runtime.knobs import Knobs


def test_the_baseline_is_the_base_with_an_instruction_in_each_query(
    base, vectors, tmp_path, capsys
):
    model, tokenizer = load_model(base), load_tokenizer(base)
    domain, records = few(tmp_path)
    task = make_task(model, tokenizer, domain, records, "test")
    with Store(tmp_path / "evaluations.jsonl") as store:
        knobs = Knobs(model, medical=vectors["medical"])
        cache = Cache(
            Engine(knobs, model, tokenizer),
            Identity.of(
                fingerprint(Checkpoint(base)),
                knobs.vectors,
                knobs.rounding,
                knobs.seed,
                model.dtype,
            ),
            store,
        )
        found = baseline(cache, task)
        assert len(store) == 4
    assert list(found) == [None, "expert", "generic", "avoidance"]
    assert found[None][0] == evaluate(model, tokenizer, domain, records, progress=False)
    for level in domain.levels:
        asked = [
            Record(
                record.id,
                ({"role": "user", "content": f"{domain.prompts[level]}\n\n{record.query}"},),
                record.responses,
                record.split,
            )
            for record in records
        ]
        expected = evaluate(model, tokenizer, domain, asked, progress=False)
        assert found[level][0] == expected
        text = tokenizer.apply_chat_template(
            asked[0].prompt, tokenize=False, add_generation_prompt=True
        )
        # The queries differ in nothing but a digit.
        assert found[level][1].prompt_tokens == len(tokenizer(text)["input_ids"])
    tokens = [cost.prompt_tokens for _, cost in found.values()]
    assert min(tokens) == tokens[0]
    assert all(0 < cost.first_token < 10 for _, cost in found.values())
    assert "Asking in words, medical: 100%" in capsys.readouterr().err


def test_records_that_an_instruction_pushes_out_of_the_context_cost_nothing(base, tmp_path):
    model, tokenizer = load_model(base), load_tokenizer(base)
    model.config.max_position_embeddings = 200
    domain, records = few(tmp_path, test=2, validation=0)
    long = Record(
        "long", ({"role": "user", "content": "what " * 120},), records[0].responses, "test"
    )
    bare = make_task(model, tokenizer, domain, [long, *records], "test")
    asked = asking_for(model, tokenizer, bare, "expert")
    assert asked.too_long == ("long",) and len(bare.records) == 3
    query, words = costs(model, tokenizer, [bare, asked])
    # Both over the two that are left: the long one would have counted in one of them alone.
    added = len(tokenizer(domain.prompts["expert"] + "\n\n")["input_ids"])
    assert words.prompt_tokens - query.prompt_tokens == pytest.approx(added, abs=2)
