"""Packing: nothing leaks, and what cannot be packed is recognised and scored all the same."""

import pytest
import torch
from scored import SHORT, UNEVEN, expected, opinionated
from tiny import ARCHITECTURES, VOCABULARY
from transformers import (
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Qwen2Config,
)

from mergekit_av.data.domain import load_domain
from mergekit_av.data.records import load_records
from mergekit_av.models.packing import Row, Sequences, can_pack, hidden_states, length_limit, rows
from mergekit_av.models.scoring import mean_log_probs

SAMPLE = Sequences(list(range(5, 19)), [list(range(30, 60)), [3, 4]])
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "attn_implementation": "sdpa",
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
# What each does that a packed row must not: cap, scale, mix tokens outside attention, mask.
UNPACKABLE = {
    "capped logits": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SIZES, final_logit_softcapping=2.0),
    ),
    "capped attention": (Gemma2ForCausalLM, Gemma2Config(**SIZES | {"attn_implementation": None})),
    "scaled logits": (GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=4.0)),
    "multiplied logits": (CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.25)),
    "state space": (MambaForCausalLM, MambaConfig(**MAMBA)),
    "convolution": (
        Lfm2ForCausalLM,
        Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    ),
}
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def records():
    return [SHORT, load_records(load_domain("medical"))[0], UNEVEN]


def built(model_class, config, dtype=torch.float32):
    """A tiny model whose next-token distributions are far from flat."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model.to(dtype)


def check(model, tokenizer, records):
    torch.testing.assert_close(
        mean_log_probs(model, tokenizer, records),
        expected(model, tokenizer, records),
        rtol=0,
        atol=1e-4,
        check_dtype=False,
    )


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_usual_architectures_are_packed(tmp_path, architecture, dtype):
    assert can_pack(opinionated(tmp_path, architecture, dtype), SAMPLE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", UNPACKABLE)
def test_what_cannot_be_packed_is_recognised(case, dtype):
    # Random weights as they are made: the least that a leak or a cap can change.
    torch.manual_seed(0)
    model_class, config = UNPACKABLE[case]
    assert not can_pack(model_class(config).eval().to(dtype), SAMPLE)


@pytest.mark.parametrize("case", UNPACKABLE)
def test_what_cannot_be_packed_is_scored_all_the_same(case, tokenizer, records):
    check(built(*UNPACKABLE[case]), tokenizer, records)


def test_experts_are_packed(tokenizer, records):
    model = built(MixtralForCausalLM, MixtralConfig(**SIZES, num_local_experts=4))
    assert can_pack(model, SAMPLE)
    check(model, tokenizer, records)


def test_beyond_a_sliding_window_a_record_is_scored_alone(tokenizer, records):
    model = built(MistralForCausalLM, MistralConfig(**SIZES, sliding_window=40))
    assert can_pack(model, SAMPLE)  # within the window it can
    check(model, tokenizer, records)


def test_eager_attention_is_scored_without_packing(tokenizer, records):
    model = built(MistralForCausalLM, MistralConfig(**SIZES | {"attn_implementation": "eager"}))
    assert not can_pack(model, SAMPLE)
    check(model, tokenizer, records)


def test_another_output_layer_than_a_plain_one_is_not_packed(tmp_path):
    class Louder(torch.nn.Linear):
        def forward(self, states):
            return 2 * super().forward(states)

    model = opinionated(tmp_path)
    model.lm_head.__class__ = Louder
    assert not can_pack(model, SAMPLE)


def test_a_short_sample_suffices(tmp_path):
    assert can_pack(opinionated(tmp_path), Sequences([5], [[6]]))


@torch.no_grad()
def test_neither_a_response_nor_a_neighbour_changes_a_bit_of_another(tmp_path):
    model = opinionated(tmp_path)
    first = Sequences([5, 6, 7, 8], [[20, 21, 22, 23], [30, 31, 32, 33], [40, 41]])
    changed = Sequences([5, 6, 7, 8], [[25, 26, 27, 28], [30, 31, 32, 33], [47, 48]])
    second, other = Sequences([9, 10], [[50, 51], [52]]), Sequences([19, 18], [[55, 56], [57]])

    def states(*records):
        row = Row.of(records, "cpu")
        return hidden_states(model, row)[row.predictors].split(row.lengths)

    before = states(first, second)
    within, beside = states(changed, second), states(first, other)
    for unchanged in (1, 3, 4):
        assert torch.equal(before[unchanged], within[unchanged])
    for unchanged in (0, 1, 2):
        assert torch.equal(before[unchanged], beside[unchanged])
    # The prompt's last token predicts the response's first; from there on it is another response.
    assert not torch.equal(before[0][1:], within[0][1:])
    assert not torch.equal(before[3], beside[3])


@pytest.mark.parametrize("broken", [float("nan"), None])
def test_the_attention_is_given_back_after_an_error(tmp_path, broken):
    model = opinionated(tmp_path)
    if broken is None:
        del model.model.layers[1].mlp.act_fn
    else:
        torch.nn.init.constant_(model.model.norm.weight, broken)
    assert not can_pack(model, SAMPLE)
    assert model.config._attn_implementation == "sdpa"


def test_what_sequences_have_in_common_is_in_the_row_once():
    row = Row.of([Sequences([1, 2, 3], [[4, 5, 6], [4, 7], [8]]), Sequences([1, 9], [[4, 5]])])
    assert row.ids.tolist() == [1, 2, 3, 4, 5, 9, 4]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 1, 2]
    assert row.layout[:3].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 0], [0, 1, 2, 0, 0]]
    assert row.layout.flatten()[row.places].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert row.predictors.tolist() == [2, 3, 4, 2, 3, 2, 5, 6]
    assert row.targets.tolist() == [4, 5, 6, 4, 7, 8, 4, 5]
    assert row.lengths == [3, 2, 1, 2]


def test_rows_hold_every_record_once_longest_first_within_the_capacity():
    records = [Sequences([1] * n, [[2] * n]) for n in (3, 9, 1, 5, 2)]
    assert list(rows(records, 10)) == [[1], [3], [0, 4], [2]]
    assert list(rows(records, 1)) == [[1], [3], [0], [4], [2]]
    assert list(rows(records, 1000)) == [[1, 3, 0, 4, 2]]
    assert list(rows([], 10)) == []


def test_the_length_limit_is_that_of_the_narrowest_layer():
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    phi = Phi3Config(**SIZES, rope_parameters=longrope, original_max_position_embeddings=256)
    assert length_limit(phi) == 256
    assert length_limit(MistralConfig(**SIZES, sliding_window=40)) == 40
    assert length_limit(MistralConfig(**SIZES, sliding_window=None)) == float("inf")
    assert length_limit(Qwen2Config(**SIZES, use_sliding_window=False)) == float("inf")
