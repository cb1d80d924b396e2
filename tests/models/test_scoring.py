"""Mean log-probabilities: those of a slow, obvious computation, on every architecture."""

import copy

import pytest
import torch
from scored import SHORT, UNEVEN, expected, opinionated
from tiny import ARCHITECTURES
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer, LlamaForCausalLM

from mergekit_av.data.domain import load_domain
from mergekit_av.data.records import Record, load_records
from mergekit_av.errors import AVError
from mergekit_av.models import scoring as logprobs
from mergekit_av.models.scoring import context_length, mean_log_probs, within_context


@pytest.fixture(scope="module")
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [SHORT, load_records(load_domain("medical"))[0], UNEVEN]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_the_slow_reference_to_1e_4_nats(
    tmp_path, tokenizer, records, architecture, tied
):
    model = opinionated(tmp_path, architecture, tied=tied)
    scores = mean_log_probs(model, tokenizer, records)
    assert scores.dtype == torch.float32 and scores.shape == (3, 3)
    torch.testing.assert_close(
        scores, expected(model, tokenizer, records), rtol=0, atol=1e-4, check_dtype=False
    )
    # The reference tells responses and tokens apart, else agreeing with it would mean little.
    assert scores.std(dim=1).min() > 0.01 and scores.std() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_low_precision_is_scored_to_its_own_precision(
    tmp_path, tokenizer, records, dtype
):
    model = opinionated(tmp_path, dtype=dtype)
    scores = mean_log_probs(model, tokenizer, records)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(
        scores, expected(model, tokenizer, records), rtol=0, atol=0.02, check_dtype=False
    )


def test_a_response_scores_the_same_beside_any_others(tmp_path, tokenizer):
    model = opinionated(tmp_path)
    alone = [
        Record("x", UNEVEN.prompt, {level: text}, "test")
        for level, text in UNEVEN.responses.items()
    ]
    together = mean_log_probs(model, tokenizer, [UNEVEN])
    torch.testing.assert_close(
        mean_log_probs(model, tokenizer, alone), together.T, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("capacity", [1, 600, 10**6])
def test_scores_are_in_the_order_of_the_records_however_many_share_a_row(
    tmp_path, tokenizer, records, capacity, monkeypatch
):
    model = opinionated(tmp_path)
    many = [*records, *load_records(load_domain("legal"))[:4], SHORT]
    monkeypatch.setattr(logprobs, "CPU_CAPACITY", capacity)
    torch.testing.assert_close(
        mean_log_probs(model, tokenizer, many),
        expected(model, tokenizer, many),
        rtol=0,
        atol=1e-4,
        check_dtype=False,
    )


def test_the_vocabulary_is_taken_in_blocks_smaller_than_a_response(
    tmp_path, tokenizer, records, monkeypatch
):
    model = opinionated(tmp_path)
    whole = mean_log_probs(model, tokenizer, records)
    monkeypatch.setattr(logprobs, "BLOCK_TOKENS", 7)
    monkeypatch.setattr(logprobs, "BLOCK_VOCABULARY", 64)
    torch.testing.assert_close(mean_log_probs(model, tokenizer, records), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_the_logits_of_all_tokens_are_never_in_memory(bias, monkeypatch):
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    torch.manual_seed(0)
    head = torch.nn.Linear(8, 5000, bias=bias)
    states, targets = torch.randn(300, 8), torch.randint(5000, (300,))
    monkeypatch.setattr(logprobs, "BLOCK_TOKENS", 100)
    monkeypatch.setattr(logprobs, "BLOCK_VOCABULARY", 200)
    with torch.no_grad(), Watch():
        found = logprobs._log_probs(states, targets, head)
    wanted = torch.log_softmax(head(states), dim=1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found, wanted)
    # A block of logits, or the weight itself, which is there anyway: 300 × 5000 would be 1.5 M.
    assert largest <= max(100 * 200, 5000 * 8)


def test_an_architecture_that_gives_all_logits_scores_the_same(tmp_path, tokenizer, records):
    class AllLogits(LlamaForCausalLM):
        def forward(self, logits_to_keep=0, **inputs):
            return super().forward(**inputs)

    model = opinionated(tmp_path)
    model.save_pretrained(tmp_path / "same")
    other = AllLogits.from_pretrained(tmp_path / "same").eval()
    torch.testing.assert_close(
        mean_log_probs(other, tokenizer, records), mean_log_probs(model, tokenizer, records)
    )


def test_the_context_is_full_at_its_last_token_and_exceeded_one_later(tmp_path, tokenizer):
    length = len(tokenizer(UNEVEN.prompt + UNEVEN.responses["b"] + "<|end|>").input_ids)
    fits = opinionated(tmp_path / "fits", context=length)
    lacks = opinionated(tmp_path / "lacks", context=length - 1)
    assert context_length(fits) == length
    assert within_context(tokenizer, [SHORT, UNEVEN], length) == [SHORT, UNEVEN]
    assert within_context(tokenizer, [SHORT, UNEVEN], length - 1) == [SHORT]
    assert within_context(tokenizer, [SHORT, UNEVEN], None) == [SHORT, UNEVEN]
    assert mean_log_probs(fits, tokenizer, [UNEVEN]).isfinite().all()
    with pytest.raises(AVError) as caught:
        mean_log_probs(lacks, tokenizer, [SHORT, UNEVEN])
    assert str(caught.value) == f"record uneven: {length} tokens, the context has {length - 1}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_one_line(tmp_path, tokenizer, value):
    model = opinionated(tmp_path)
    with torch.no_grad():
        model.model.norm.weight[3] = value
    with pytest.raises(AVError, match=r"^record short: the model's log-probabilities are NaN or"):
        mean_log_probs(model, tokenizer, [SHORT])


def test_another_models_tokenizer_is_one_line(tmp_path, tokenizer):
    model = opinionated(tmp_path)
    model.resize_token_embeddings(100)
    with pytest.raises(
        AVError, match=r"^record short: a token beyond the model's 100: other token"
    ):
        mean_log_probs(model, tokenizer, [SHORT])


def test_a_response_with_nothing_before_it_is_one_line(tmp_path, tokenizer):
    record = Record("x", "t", {"a": "he", "b": "o"}, "test")  # "the" is one token
    with pytest.raises(AVError, match=r"^record x: no token of the prompt stands before the resp"):
        mean_log_probs(opinionated(tmp_path), tokenizer, [record])


def test_a_response_without_tokens_is_one_line(tmp_path, tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    record = Record("x", "Hello", {"a": " you", "b": ""}, "test")
    with pytest.raises(AVError, match=r"^record x: a response without tokens has no log-prob"):
        mean_log_probs(opinionated(tmp_path), endless, [record])


def test_no_records_are_no_scores(tmp_path, tokenizer):
    assert mean_log_probs(opinionated(tmp_path), tokenizer, []).shape == (0, 0)


def test_the_model_is_left_as_it_was(tmp_path, tokenizer):
    model = opinionated(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = mean_log_probs(model, tokenizer, [SHORT])
    assert torch.equal(first, mean_log_probs(model, tokenizer, [SHORT]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and all(p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == "sdpa"


def test_the_progress_bar_is_on_stderr_and_only_where_it_was_asked_for(tmp_path, tokenizer, capsys):
    model = opinionated(tmp_path)
    capsys.readouterr()
    mean_log_probs(model, tokenizer, [SHORT])
    assert capsys.readouterr() == ("", "")
    mean_log_probs(model, tokenizer, [SHORT], progress="Scoring tone")
    out, err = capsys.readouterr()
    assert out == "" and "Scoring tone: 100%" in err and "1/1" in err
