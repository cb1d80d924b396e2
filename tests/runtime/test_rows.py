"""A λ for each row of a batch: the same as one setting after the other."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import make_model, perturb
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from mergekit_av import AVError, Knobs, extract
from mergekit_av.runtime.rows import added_per_row
from mergekit_av.vectors.factors import Factors

ROWS = [{"tone": -1.0}, {}, {"tone": 0.5, "law": -2.0}, {"law": 1.0}]
PROMPTS = torch.randint(5, 600, (4, 9), generator=torch.Generator().manual_seed(1))


def load(folder: Path, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def make_vector(base: Path, out: Path, seed: int) -> Path:
    """Of a LoRA adapter with random factors, of another rank for each seed."""
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=2 + seed, target_modules="all-linear")
    model = get_peft_model(load(base), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(out.with_suffix(".lora"))
    return extract(base, out.with_suffix(".lora"), out).folder


def conv(folder: Path) -> Path:
    """A tiny GPT-2, whose weights lie the other way round."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[make_model, conv], ids=["llama", "gpt2"])
def made(request, tmp_path_factory):
    """A base and two low-rank vectors. Read only."""
    folder = tmp_path_factory.mktemp("rows")
    base = request.param(folder / "base")
    return base, {n: make_vector(base, folder / n, s) for s, n in enumerate(("tone", "law"), 1)}


@torch.inference_mode()
def logits(model, ids=PROMPTS) -> torch.Tensor:
    return model(ids).logits


def one_by_one(knobs: Knobs, model, rows) -> torch.Tensor:
    found = []
    for row, prompt in zip(rows, PROMPTS, strict=False):
        with knobs.at({"tone": 0, "law": 0, **row}):
            found.append(logits(model, prompt[None]))
    return torch.cat(found)


LAMBDAS = st.dictionaries(st.sampled_from(["tone", "law"]), st.floats(-2, 2))


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(LAMBDAS, min_size=4, max_size=4))
def test_rows_are_as_one_setting_after_the_other(made, rows):
    base, vectors = made
    model = load(base)
    knobs = Knobs(model, vectors)
    expected = one_by_one(knobs, model, rows)
    with knobs.rows(rows) as turned:
        torch.testing.assert_close(logits(turned), expected, rtol=0, atol=1e-4)


def test_the_base_is_there_again_and_so_is_the_setting(made):
    base, vectors = made
    model = load(base)
    plain, knobs = logits(model), Knobs(model, vectors)
    knobs.set(tone=1)
    set_to_one = logits(model)
    with knobs.rows(ROWS):
        found = logits(model)
        torch.testing.assert_close(found[1], plain[1], rtol=0, atol=1e-6)
    assert knobs.lambdas == {"tone": 1, "law": 0}
    assert torch.equal(logits(model), set_to_one)
    with pytest.raises(ZeroDivisionError), knobs.rows(ROWS):
        raise ZeroDivisionError
    knobs.reset()
    assert torch.equal(logits(model), plain)
    assert not any(module._forward_hooks for module in model.modules())


def test_each_row_writes_what_its_own_setting_writes(made):
    base, vectors = made
    model = load(base)
    knobs = Knobs(model, vectors)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = []
    for row, prompt in zip(ROWS, PROMPTS, strict=True):
        with knobs.at({"tone": 0, "law": 0, **row}):
            expected.append(model.generate(prompt[None], **options))
    with knobs.rows(ROWS):
        found = model.generate(PROMPTS, **options)
        twice = model.generate(PROMPTS, num_beams=2, num_return_sequences=2, **options)
    for row, own in zip(found, expected, strict=True):
        assert torch.equal(row[: len(own[0])], own[0])
    assert len(twice) == 8


def test_in_sixteen_bits_rows_are_as_near_as_rounding_lets_them_be(made):
    base, vectors = made
    model = load(base, torch.bfloat16)
    knobs = Knobs(model, vectors)
    expected = one_by_one(knobs, model, ROWS).float()
    with knobs.rows(ROWS):
        distance = (logits(model).float() - expected).abs().mean()
    assert distance < 0.05 * expected.std()


def test_a_batch_of_another_size_is_refused(made):
    base, vectors = made
    model = load(base)
    knobs = Knobs(model, vectors)
    with knobs.rows(ROWS), pytest.raises(AVError, match="a batch of 3 rows, where λ of 4 are set"):
        logits(model, PROMPTS[:3])
    with pytest.raises(AVError, match="needs a setting of each row"), knobs.rows([]):
        pass
    with pytest.raises(AVError, match="no knob 'tune'"), knobs.rows([{"tune": 1}]):
        pass
    with pytest.raises(AVError, match="finite number"), knobs.rows([{"tone": float("nan")}]):
        pass


def test_whole_vectors_have_one_lambda_for_all_rows(made, tmp_path):
    base, vectors = made
    whole = extract(base, perturb(base, tmp_path / "aligned"), tmp_path / "whole").folder
    model = load(base)
    knobs = Knobs(model, {"tone": vectors["tone"], "whole": whole})
    with pytest.raises(AVError, match="whole has whole tensors"), knobs.rows([{"whole": 1.0}]):
        pass
    with knobs.rows([{"tone": 1.0, "whole": 0}]):
        logits(model)


def test_layers_that_see_no_rows_are_refused():
    flat = torch.nn.Linear(32, 32)
    factors = Factors(torch.ones(32, 2), torch.ones(2, 32))
    added = added_per_row({flat: {"tone": factors}}, [{"tone": 1.0}])
    with added, pytest.raises(AVError, match="see tokens without their rows"):
        flat(torch.ones(4, 32))
