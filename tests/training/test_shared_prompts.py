"""Prompts computed once a batch: TRL's losses, metrics and gradients, of fewer tokens."""

import copy
import logging
import types

import pytest
import torch
from architectures import SPECIAL, TOKENS, USUAL, Architecture
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from tiny import VOCABULARY
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AttentionInterface, PreTrainedTokenizerFast
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl import DPOConfig, DPOTrainer

from mergekit_av.training.restore import RestoringTrainer
from mergekit_av.training.shared_prompts import SharedPromptsTrainer, why_not

# Shorter than the prompts, so that their beginning is out of sight of their responses.
WINDOW = {"sliding_window": 5}
SHARING = {
    "llama": USUAL["llama"],
    "gpt2": SPECIAL["gpt2"],  # learned positions
    "gpt-neox": SPECIAL["gpt-neox"],
    "qwen3": USUAL["qwen3"],
    "gemma2": Architecture("Gemma2", {**USUAL["gemma2"].settings, **WINDOW}),  # caps its logits
    "gemma3": Architecture("Gemma3", {**USUAL["gemma3"].settings, **WINDOW}, text="Text"),
    "mistral": Architecture("Mistral", {**USUAL["mistral"].settings, **WINDOW}),
    "gpt-oss": Architecture("GptOss", {**USUAL["gpt-oss"].settings, **WINDOW}),
    "mixtral": SPECIAL["mixtral"],
    "deepseek-v3": USUAL["deepseek-v3"],
    "bloom": USUAL["bloom"],  # ALiBi
    "mpt": Architecture("Mpt", {**TOKENS, "d_model": 32, "n_layers": 2, "n_heads": 4}),
}
NO_AUXILIARY = {"router_aux_loss_coef": 0.0}


def words(count: int, seed: int) -> str:
    """So many words, each of which is a token."""
    generator = torch.Generator().manual_seed(seed)
    return " ".join(map(str, torch.randint(5, VOCABULARY, (count,), generator=generator).tolist()))


LONG, SHORT, ONE = words(12, 1), words(7, 2), words(1, 3)
# Tokens with that of the end, which TRL adds.
FIVE, NINE, THREE, TWENTY = (" " + words(count - 1, count) for count in (5, 9, 3, 20))
# Prompt, chosen, rejected. The middle response twice, a pair twice, a response to two prompts.
PAIRS = [
    (LONG, FIVE, NINE),
    (SHORT, NINE, TWENTY),
    (LONG, NINE, THREE),
    (ONE, THREE, FIVE),
    (LONG, FIVE, NINE),
]
ROWS, WIDTH = 2 * len(PAIRS), 7 + 20
# Each prompt without its last token, and the distinct responses to it as wide as the longest one.
ONCE = (11 + 3 * 9) + (6 + 2 * 20) + (0 + 2 * 5)
DISTINCT = 7 * WIDTH  # rows that are there twice computed once
# The first batch is computed in both ways before it counts.
CHECKED = ONCE + ROWS * WIDTH + ONCE


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {str(number): number for number in range(2, VOCABULARY)}
    vocabulary |= {"<pad>": 0, "<end>": 1}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="2"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


@pytest.fixture
def trainer(tmp_path, tokenizer):
    """A function that makes a trainer of some class for a copy of a model."""

    def make(kind: type[DPOTrainer], model, pairs=PAIRS, **arguments) -> DPOTrainer:
        columns = ("prompt", "chosen", "rejected")
        # Another way has other rows: else TRL finds the reference that was computed in the first.
        rows = [{**dict(zip(columns, pair, strict=True)), "way": kind.__name__} for pair in pairs]
        settings = {
            "output_dir": str(tmp_path), "report_to": [], "use_cpu": True, "bf16": False,
            "gradient_checkpointing": False, "precompute_ref_log_probs": True, "max_length": None,
            "per_device_train_batch_size": len(pairs), "loss_type": ["ipo"], "beta": 0.25,
        }  # fmt: skip
        made = kind(
            copy.deepcopy(model),
            args=DPOConfig(**settings | arguments),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        moved = torch.Generator().manual_seed(5)  # from the reference
        with torch.no_grad():
            for weight in made.model.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=moved)
        made.model.train()
        return made

    return make


def build(architecture: Architecture):
    """A model whose predictions depend on all that comes before: with weights that are not tiny."""
    torch.manual_seed(0)
    model = architecture.build()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
    return model


def tokens_seen(backbone) -> list[int]:
    """A list to which each call of a backbone adds its tokens, from now on."""
    seen: list[int] = []
    backbone.register_forward_hook(
        lambda module, args, output: seen.append(output.last_hidden_state[..., 0].numel())
    )
    return seen


def step(trainer: DPOTrainer, **more):
    """Loss, gradients, metrics, reference, and the tokens that went through the backbone."""
    model = trainer.model
    seen = tokens_seen(
        (model.get_base_model() if isinstance(model, PeftModel) else model).base_model
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    model.zero_grad()
    loss = trainer.compute_loss(model, {**batch, **more})
    loss.backward()
    gradients = {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
    reference = [batch.get(f"ref_{side}_logps", torch.zeros(())) for side in ("chosen", "rejected")]
    return types.SimpleNamespace(
        loss=loss.detach(),
        gradients=gradients,
        metrics=trainer._metrics["train"],
        reference=torch.stack(reference),
        tokens=sum(seen),
    )


def said(caplog) -> list[str]:
    """What the log says of prompts."""
    return [record.getMessage() for record in caplog.records if "prompts" in record.name]


def assert_same(ours, theirs):
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ours.loss, theirs.loss, **close)
    torch.testing.assert_close(ours.reference, theirs.reference, **close)
    assert ours.gradients.keys() == theirs.gradients.keys()
    largest = max(gradient.abs().max() for gradient in theirs.gradients.values())
    assert largest > 1e-2
    for name, gradient in theirs.gradients.items():
        found = ours.gradients[name]
        torch.testing.assert_close(found / largest, gradient / largest, **close, msg=name)
    assert ours.metrics.keys() == theirs.metrics.keys()
    for name, values in theirs.metrics.items():
        assert ours.metrics[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("name", SHARING)
def test_losses_and_gradients_are_trls(name, trainer, caplog):
    model = build(SHARING[name])
    arguments = NO_AUXILIARY if hasattr(model.config, "output_router_logits") else {}
    with caplog.at_level(logging.INFO, "mergekit_av"):
        ours = step(trainer(SharedPromptsTrainer, model, **arguments))
    theirs = step(trainer(DPOTrainer, model, **arguments))
    assert (ours.tokens, theirs.tokens) == (ONCE, ROWS * WIDTH)
    assert not said(caplog)
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"loss_type": ["ipo", "sft"], "loss_weights": [0.5, 1.0]},
        {"loss_type": ["sigmoid"]},
        {"loss_type": ["ipo"], "ld_alpha": 0.5},
        {"loss_type": ["sigmoid"], "use_weighting": True},
        {"max_length": 14},
        {"max_length": 14, "truncation_mode": "keep_end"},
    ],
    ids=str,
)
def test_whatever_the_loss_and_wherever_rows_are_cut(arguments, trainer):
    model = build(USUAL["llama"])
    ours = step(trainer(SharedPromptsTrainer, model, **arguments))
    theirs = step(trainer(DPOTrainer, model, **arguments))
    assert ours.tokens < theirs.tokens
    assert_same(ours, theirs)


def test_beside_a_reference_model(trainer, tmp_path):
    build(USUAL["llama"]).save_pretrained(tmp_path / "base")  # where TRL looks for it
    model = USUAL["llama"].model_class.from_pretrained(tmp_path / "base")
    ours = step(trainer(SharedPromptsTrainer, model, precompute_ref_log_probs=False))
    theirs = step(trainer(DPOTrainer, model, precompute_ref_log_probs=False))
    assert ours.tokens == CHECKED
    assert_same(ours, theirs)


def test_adapters_are_trained_as_trl_does_it(trainer):
    model = get_peft_model(
        build(USUAL["llama"]), LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    )
    ours = step(trainer(SharedPromptsTrainer, model))
    theirs = step(trainer(DPOTrainer, model))
    assert (ours.tokens, theirs.tokens) == (ONCE, ROWS * WIDTH)
    assert len(ours.gradients) == 8
    assert_same(ours, theirs)


def test_behind_a_prefix_that_is_trained_rows_stay_whole(trainer):
    prefix = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    made = trainer(SharedPromptsTrainer, get_peft_model(build(USUAL["llama"]), prefix))
    assert step(made).tokens == ROWS * (3 + WIDTH)


def test_references_are_computed_once_too(trainer):
    made = trainer(SharedPromptsTrainer, build(USUAL["llama"]))
    rows = made.train_dataset.remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    seen = tokens_seen(made.model.base_model)
    made._precompute_ref_logps(rows.add_column("again", [True] * len(rows)), "again", len(rows))
    assert sum(seen) == ONCE


def test_all_trainings_share_prompts(trainer):
    assert step(trainer(RestoringTrainer, build(USUAL["llama"]))).tokens == ONCE


def test_in_bfloat16_the_first_batch_is_compared_in_float32(trainer, caplog):
    made = trainer(SharedPromptsTrainer, build(USUAL["llama"]))
    made.model.forward._agrees = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = step(made)
    assert found.tokens == CHECKED
    assert not said(caplog)


def test_where_each_prompt_has_one_response_nothing_is_shared(trainer):
    # Both prompts of a pair are cut to different lengths.
    pairs = [(LONG, FIVE, NINE), (SHORT, NINE, TWENTY)]
    cut = {"max_length": 14, "truncation_mode": "keep_end"}
    assert step(trainer(SharedPromptsTrainer, build(USUAL["llama"]), pairs, **cut)).tokens == 4 * 14


def test_what_belongs_to_whole_rows_is_computed_in_rows(trainer):
    made = trainer(SharedPromptsTrainer, build(USUAL["llama"]))
    positions = torch.arange(WIDTH).expand(ROWS, -1)
    assert step(made, position_ids=positions).tokens == ROWS * WIDTH
    assert step(made).tokens == ONCE


def on_the_left(name: str, row: torch.Tensor, length: int) -> torch.Tensor:
    return row.roll(WIDTH - length)


def with_a_gap(name: str, row: torch.Tensor, length: int) -> torch.Tensor:
    """A response of which a token is not predicted, but its neighbours are."""
    gap = torch.arange(WIDTH) == length - 2
    return row.masked_fill(gap, 0) if name == "completion_mask" else row


@pytest.mark.parametrize("change", [on_the_left, with_a_gap])
def test_rows_of_another_form_are_computed_as_they_are(change, trainer):
    model = build(USUAL["llama"])
    losses = []
    for kind in (SharedPromptsTrainer, DPOTrainer):
        made = trainer(kind, model)
        batch = made.data_collator(list(made.train_dataset))
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        for name in ("input_ids", "completion_mask", "attention_mask"):
            rows = zip(batch[name], lengths, strict=True)
            batch[name] = torch.stack([change(name, row, length) for row, length in rows])
        seen = tokens_seen(made.model.base_model)
        losses.append(made.compute_loss(made.model, batch))
        assert sum(seen) == ROWS * WIDTH
    torch.testing.assert_close(*losses)


def test_all_that_trls_forward_returns_is_there(trainer):
    model = build(USUAL["llama"])
    outputs = []
    for kind in (SharedPromptsTrainer, DPOTrainer):
        made = trainer(kind, model)
        batch = made.data_collator(list(made.train_dataset))
        labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        outputs.append(made.model(**inputs, labels=labels, use_cache=False, fused_lm_head=True))
    ours, theirs = outputs
    assert ours.keys() == theirs.keys() and "loss" in ours
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name], values, rtol=1e-5, atol=1e-5, msg=name)


def attend_alike(*args, **kwargs):
    return sdpa_attention_forward(*args, **kwargs)


def with_attention(architecture: Architecture, name: str):
    AttentionInterface.register(name, attend_alike)
    model = build(architecture)
    model.config._attn_implementation = name
    return model


DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
NOT_SHARING = {
    "gradient checkpointing": (lambda: build(USUAL["llama"]), {"gradient_checkpointing": True}),
    "auxiliary loss": (lambda: build(SPECIAL["mixtral"]), {}),
    "dropout": (lambda: build(SPECIAL["gpt2"]), {"disable_dropout": False}),
    "dropout draws": (lambda: build(USUAL["opt"]), {}),  # which TRL does not switch off
    "torch.compile": (lambda: build(USUAL["llama"]), {"torch_compile": True}),
    "eager and sdpa": (lambda: with_attention(USUAL["llama"], "other"), {}),
    "rotary": (lambda: build(Architecture("Llama", {**USUAL["llama"].settings, **DYNAMIC})), {}),
    "more in it": (lambda: build(USUAL["jamba"]), NO_AUXILIARY),
    "than keys and values": (lambda: build(SPECIAL["mamba"]), {}),
}


EACH_ROW = {"auxiliary loss", "dropout", "dropout draws", "torch.compile"}


@pytest.mark.parametrize("reason", NOT_SHARING)
def test_where_prompts_cannot_be_shared_trls_way_is_taken(reason, trainer, caplog):
    model, arguments = NOT_SHARING[reason][0](), NOT_SHARING[reason][1]
    with caplog.at_level(logging.INFO, "mergekit_av"):
        made = trainer(SharedPromptsTrainer, model, **arguments)
    [line] = said(caplog)
    assert line.startswith("prompts are computed once a response: ") and reason in line
    each = reason in EACH_ROW
    assert step(made).tokens == (ROWS * WIDTH if each else DISTINCT)


@pytest.mark.parametrize("sharing", [True, False])
def test_rows_that_are_there_twice_are_computed_once(sharing, trainer):
    arguments = {} if sharing else {"gradient_checkpointing": True}
    model, twice = build(USUAL["llama"]), [(LONG, FIVE, NINE)] * 2
    ours = step(trainer(SharedPromptsTrainer, model, twice, **arguments))
    theirs = step(trainer(DPOTrainer, model, twice, **arguments))
    assert ours.tokens == (11 + 2 * 9 if sharing else theirs.tokens // 2)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=1e-5)
    for name, gradient in theirs.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_nothing_is_shared_where_weights_are_spread(trainer):
    made = trainer(SharedPromptsTrainer, build(USUAL["llama"]))
    assert why_not(made) is None
    for name in ("is_fsdp_enabled", "is_deepspeed_enabled"):
        setattr(made, name, True)
        assert "spread over processes" in why_not(made)
        setattr(made, name, False)


NOISE = {"router_jitter_noise": 0.3}
GPT = {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


@pytest.mark.parametrize(
    ("architecture", "arguments", "found"),
    [
        # Draws at random: no two computations are the same.
        (
            Architecture("Phimoe", {**USUAL["phimoe"].settings, **NOISE}),
            NO_AUXILIARY,
            "nats a token",
        ),
        # Takes a cache, and does not look at it.
        (Architecture("OpenAIGPT", GPT, "LMHeadModel"), {}, "Error: "),
    ],
)
def test_a_model_that_computes_something_else_is_warned_of(
    architecture, arguments, found, trainer, caplog
):
    made = trainer(SharedPromptsTrainer, build(architecture), **arguments)
    [line] = said(caplog)
    assert "computed once for all" in line and found in line
    assert step(made).tokens == DISTINCT
    assert said(caplog) == [line]
