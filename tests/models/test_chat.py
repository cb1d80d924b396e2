"""Token ids: exactly those that TRL trains on, and every level ends alike."""

import time
from itertools import pairwise

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHAT_TEMPLATE, make_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import mergekit_av.models.chat
from mergekit_av.data.domain import load_domain
from mergekit_av.data.records import Record, load_records
from mergekit_av.errors import AVError
from mergekit_av.models.chat import (
    PLAIN_NOTICE,
    cut_notice,
    encode,
    ensure_chat_template,
    generation_prompt,
)
from mergekit_av.training.pairs import preference_pairs

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")

# The manners of chat templates: what a turn looks like alone, and as the last one.
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|system|>You are helpful.<|end|>\n{% endif %}"
    + CHAT_TEMPLATE
)
BOS_AND_TRIM = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n\n"
    "{{ message.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)
SPACE_BEFORE_RESPONSE = (
    "{% for message in messages %}{% if message.role == 'assistant' %} {{ message.content }}"
    "{{ eos_token }}{% else %}[INST] {{ message.content }} [/INST]{% endif %}{% endfor %}"
)
THOUGHTS_IN_RESPONSE = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if loop.last and message.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THOUGHTS_IN_PROMPT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think></think>{% endif %}"
)
TEMPLATES = {
    "plain turns": CHAT_TEMPLATE,
    "default system prompt": DEFAULT_SYSTEM,
    "BOS, trimmed contents": BOS_AND_TRIM,
    "space before the response": SPACE_BEFORE_RESPONSE,
    "thoughts in the response": THOUGHTS_IN_RESPONSE,
    "thoughts in the prompt": THOUGHTS_IN_PROMPT,
    "none": None,
}
PLAIN_TEXTS = [
    Record("a", "Once upon a time", {"good": " there was a frog.", "bad": ", no."}, "train"),
    Record("b", "Once upon a ti", {"good": "me there was a frog.", "bad": "ger, no."}, "train"),
    Record("c", "Two\n\n", {"good": "ends <|end|>", "bad": "\nno end"}, "train"),
    Record("d", "Ünï ", {"good": "🐸", "bad": " 🐸"}, "train"),
]


def tokenizer_with(folder, template, bos=False):
    """The tests' tokenizer with a chat template; with `bos`, one that puts BOS before every text."""
    make_tokenizer(folder, template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if bos:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    return tokenizer


def conversations() -> list[Record]:
    """Built-in records, one of them in the middle of a conversation, one with a system prompt."""
    first, second, third = load_records(load_domain("medical"))[:3]
    earlier = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."})
    system = ({"role": "system", "content": "Be brief."},)
    return [
        first,
        Record("b", (*earlier, *second.prompt), second.responses, "train"),
        Record("c", (*system, *third.prompt), {"x": " spaces ", "y": "\nlines\n"}, "train"),
    ]


def trl_ids(base, tokenizer, records, folder) -> list[tuple]:
    """(prompt, chosen, rejected) ids of each pair, as DPOTrainer feeds them to the model."""
    rows = preference_pairs(records)
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(base),
        args=DPOConfig(
            str(folder), max_length=None, use_cpu=True, bf16=False, report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [tuple(row[key] for key in keys) for row in trainer.train_dataset]


def our_ids(tokenizer, records) -> list[tuple]:
    """The same of `encode`, a pair at a time."""
    ids = []
    for record in records:
        for pair in pairwise(record.responses.values()):
            prompt, (chosen, rejected) = encode(tokenizer, record.prompt, pair)
            ids.append((prompt, chosen, rejected))
    return ids


@pytest.mark.parametrize("bos", [False, True], ids=["", "BOS"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_conversations_have_the_token_ids_that_trl_trains_on(base, tmp_path, template, bos):
    tokenizer = tokenizer_with(tmp_path, template, bos)
    ensure_chat_template(tokenizer)
    records = conversations()
    theirs = trl_ids(base, tokenizer, records, tmp_path)
    assert len(theirs) == 5 and our_ids(tokenizer, records) == theirs
    # Side by side with a third response, a response is what it is in a pair.
    prompt, (expert, generic, avoidance) = encode(
        tokenizer, records[0].prompt, list(records[0].responses.values())
    )
    assert [(prompt, expert, generic), (prompt, generic, avoidance)] == theirs[:2]


@pytest.mark.parametrize("bos", [False, True], ids=["", "BOS"])
def test_plain_text_has_the_token_ids_that_trl_trains_on(base, tmp_path, bos):
    tokenizer = tokenizer_with(tmp_path, CHAT_TEMPLATE, bos)
    theirs = trl_ids(base, tokenizer, PLAIN_TEXTS, tmp_path)
    assert our_ids(tokenizer, PLAIN_TEXTS) == theirs
    joined = tokenizer(PLAIN_TEXTS[1].prompt)["input_ids"]
    assert len(theirs[1][0]) < len(joined)  # "ti" and "me" are one token: the case is a real one


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHAT_TEMPLATE, "<|end|>\n"),
        (DEFAULT_SYSTEM, "<|end|>\n"),
        (BOS_AND_TRIM, "<|end|>"),
        (THOUGHTS_IN_PROMPT, "<|end|>\n"),
        (None, "<|end|>\n\n"),
    ],
)
def test_a_response_is_its_text_and_the_end_of_the_turn_at_every_level(tmp_path, template, end):
    tokenizer = tokenizer_with(tmp_path, template)
    ensure_chat_template(tokenizer)
    for record in load_records(load_domain("medical"))[:5]:
        _, ids = encode(tokenizer, record.prompt, list(record.responses.values()))
        found = [tokenizer.decode(response).removeprefix(" ") for response in ids]
        assert found == [text + end for text in record.responses.values()]


def test_a_response_to_plain_text_ends_with_one_end_of_sequence_token(tmp_path):
    tokenizer = tokenizer_with(tmp_path, None)
    _, responses = encode(tokenizer, "Why?", [" Because.", " Because.<|end|>"])
    assert responses[0] == responses[1]
    assert responses[0].count(tokenizer.eos_token_id) == 1
    assert responses[0][-1] == tokenizer.eos_token_id


def test_plain_text_without_an_end_of_sequence_token_is_scored_as_it_is(tmp_path):
    tokenizer = tokenizer_with(tmp_path, None)
    tokenizer.eos_token = None
    prompt, (response,) = encode(tokenizer, "Why?", [" Because."])
    assert tokenizer.decode(prompt) + tokenizer.decode(response) == "Why? Because."


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_what_is_answered_is_the_whole_prompt_and_where_scoring_has_less_it_is_said(
    tmp_path, template
):
    tokenizer = tokenizer_with(tmp_path, template)
    ensure_chat_template(tokenizer)
    records = conversations()
    for record in records:
        whole = tokenizer.apply_chat_template(
            list(record.prompt), add_generation_prompt=True, return_dict=True
        )
        assert generation_prompt(tokenizer, record.prompt) == whole["input_ids"]
    notice = cut_notice(tokenizer, records)
    if template == THOUGHTS_IN_PROMPT:
        assert "the end of 3 of 3 generation prompts, such as '<think></think>', is left" in notice
    else:
        assert notice is None


def test_the_end_of_a_plain_prompt_that_a_response_is_joined_to_is_said_to_be_left_out(tmp_path):
    tokenizer = tokenizer_with(tmp_path, None)
    joined = PLAIN_TEXTS[1]
    assert generation_prompt(tokenizer, joined.prompt) == tokenizer(joined.prompt)["input_ids"]
    assert "the end of 1 of 2 generation prompts, such as 'i'" in cut_notice(
        tokenizer, [PLAIN_TEXTS[0], joined]
    )


def test_no_answer_is_written_behind_an_end_that_the_tokenizer_adds(tmp_path):
    tokenizer = tokenizer_with(tmp_path, None)
    bare = tokenizer("Once")["input_ids"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
    )
    assert tokenizer("Once")["input_ids"] == [*bare, tokenizer.eos_token_id]
    assert generation_prompt(tokenizer, "Once") == bare
    assert generation_prompt(tokenizer, "Once<|end|>")[-1] == tokenizer.eos_token_id
    assert cut_notice(tokenizer, [Record("a", "Once", {"x": " a", "y": " b"}, "test")]) is None


def test_a_tokenizer_without_a_chat_template_gets_the_plain_one_and_says_so(tmp_path):
    tokenizer = tokenizer_with(tmp_path, None, bos=True)
    assert ensure_chat_template(tokenizer) == PLAIN_NOTICE
    assert ensure_chat_template(tokenizer) is None
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"},
    ]  # fmt: skip
    prompt, (response,) = encode(tokenizer, messages, ["Because."])
    assert tokenizer.decode(prompt) == "<s>System: Be brief.\n\nUser: Why?\n\nAssistant:"
    assert tokenizer.decode(response) == " Because.<|end|>\n\n"


def test_a_chat_template_of_its_own_is_left_alone(tmp_path):
    tokenizer = tokenizer_with(tmp_path, CHAT_TEMPLATE)
    assert ensure_chat_template(tokenizer) is None
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_a_conversation_that_the_template_refuses_is_one_line(tmp_path):
    refusing = "{{ raise_exception('System role not supported') }}"
    tokenizer = tokenizer_with(tmp_path, refusing)
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    with pytest.raises(AVError) as caught:
        encode(tokenizer, messages, ["z"])
    assert str(caught.value) == (
        "the chat template refuses a conversation of system, user: System role not supported"
    )


FAILING = {
    "a division by zero": "{{ 1 / 0 }}",
    "a sum of text and number": "{{ 'a' + 1 }}",
    "what is not defined": "{{ nothing.at.all }}",
    "no end of macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "another template": "{% include 'x.jinja' %}",
    "no syntax": "{% if %}",
    "what Python keeps": "{{ ''.__class__.__mro__ }}{{ [].__class__.__base__.__subclasses__() }}",
    "a large range": "{{ range(10 ** 9) | list }}",
    "loops without end": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("what", FAILING)
def test_a_template_that_fails_or_does_not_end_is_one_line(tmp_path, monkeypatch, what):
    monkeypatch.setattr(mergekit_av.models.chat, "RENDER_SECONDS", 2)
    tokenizer = tokenizer_with(tmp_path, FAILING[what])
    began = time.monotonic()
    with pytest.raises(
        AVError, match="the chat template refuses a conversation of user: "
    ) as caught:
        encode(tokenizer, [{"role": "user", "content": "y"}], ["z"])
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 20


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(prompt=TEXT, responses=st.lists(TEXT, min_size=2, max_size=4))
def test_prompt_and_response_are_the_tokens_of_the_whole_text(base, prompt, responses):
    tokenizer = AutoTokenizer.from_pretrained(base)
    start, ends = encode(tokenizer, prompt, responses)
    for response, end in zip(responses, ends, strict=True):
        whole = tokenizer(prompt + response + tokenizer.eos_token)["input_ids"]
        assert start + end == whole and end[-1] == tokenizer.eos_token_id
    assert start == tokenizer(prompt)["input_ids"][: len(start)]
