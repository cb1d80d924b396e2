"""Greedy answers, several at a time."""

import pytest
import torch
from answering import PROMPTS, asked, loud, records
from tiny import ARCHITECTURES, CHAT_TEMPLATE

from mergekit_av import AVError
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.generation import Answer, write_answers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_changes_no_answer(tmp_path, architecture):
    model, tokenizer = loud(tmp_path / architecture, architecture)
    asks = records([asked(text) for text in PROMPTS])
    together = write_answers(model, tokenizer, asks, Decoding(12), progress=False)
    for record in asks:
        alone = write_answers(model, tokenizer, [record], Decoding(12), progress=False)
        assert alone[record.id] == together[record.id]
    assert len({answer.text for answer in together.values()}) == 3


def test_greedy_is_the_most_probable_token_each_time(tmp_path):
    model, tokenizer = loud(tmp_path / "model")
    asks = records(["Take plenty of", "An old dog"])  # plain text goes in as it is
    answers = write_answers(model, tokenizer, asks, Decoding(10), progress=False)
    for record in asks:
        start = ids = tokenizer(record.prompt, return_tensors="pt").input_ids
        for _ in range(10):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        text = tokenizer.decode(ids[0, start.shape[1] :], skip_special_tokens=True)
        assert answers[record.id].text == text.strip()


def test_an_answer_is_written_from_the_whole_prompt_of_the_template(tmp_path):
    model, tokenizer = loud(tmp_path / "model")
    # Before a response the template writes no <think>, and an empty response it refuses.
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}"
    ).replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if not message['content'] %}{{ raise_exception('empty') }}{% endif %}",
    )
    [record] = records([asked("Why?")])
    ids = tokenizer.apply_chat_template(
        list(record.prompt), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    assert tokenizer.decode(ids[0]).endswith("<|assistant|><think>\n")
    written = model.generate(ids, do_sample=False, max_new_tokens=8, pad_token_id=0)
    expected = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()
    [answer] = write_answers(model, tokenizer, [record], Decoding(8), progress=False).values()
    assert answer.text == expected


def test_a_prompt_that_a_response_would_be_joined_to_is_answered_as_it_is(tmp_path):
    model, tokenizer = loud(tmp_path / "model")
    [record] = records(["Once upon a ti"])
    ids = tokenizer(record.prompt, return_tensors="pt").input_ids
    written = model.generate(ids, do_sample=False, max_new_tokens=8, pad_token_id=0)
    expected = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()
    [answer] = write_answers(model, tokenizer, [record], Decoding(8), progress=False).values()
    assert answer.text == expected


def test_a_token_of_the_prompt_without_an_embedding_is_one_line(tmp_path):
    model, tokenizer = loud(tmp_path / "model")
    tokenizer.add_tokens(["<think>"])
    [record] = records(["Well <think>"])
    with pytest.raises(AVError, match=r"^the prompt of record 0: .*'<think>' has the id 600"):
        write_answers(model, tokenizer, [record], Decoding(1), progress=False)


def test_more_records_than_are_written_at_a_time(tmp_path):
    model, tokenizer = loud(tmp_path / "model")
    asks = records([asked(f"Number {i}?") for i in range(19)])
    answers = write_answers(model, tokenizer, asks, Decoding(4), progress=False)
    assert list(answers) == [record.id for record in asks]


def test_an_answer_ends_at_any_of_the_models_ends_or_never(tmp_path):
    model, tokenizer = loud(tmp_path / "model")
    [ask] = records([asked("Well?")])

    def answer(ends, tokenizer_end="<|end|>") -> Answer:
        model.generation_config.eos_token_id = ends
        tokenizer.eos_token = tokenizer_end
        return write_answers(model, tokenizer, [ask], Decoding(12), progress=False)["0"]

    whole = answer(None, None)
    assert not whole.ended
    ids = tokenizer(
        tokenizer.apply_chat_template(ask.prompt, tokenize=False, add_generation_prompt=True)
    )
    out = model.generate(
        torch.tensor([ids["input_ids"]]), do_sample=False, max_new_tokens=12, pad_token_id=0
    )
    written = out[0, len(ids["input_ids"]) :].tolist()
    third = written[2]
    cut = written.index(third)
    never = min(set(range(600)) - set(written))
    for ends in (third, [never, third], [third, never]):
        found = answer(ends)
        assert found == Answer(tokenizer.decode(written[:cut]).strip(), ended=True)
    # The tokenizer's own end, which ends a turn in training, ends an answer too.
    assert answer(never, tokenizer.convert_ids_to_tokens(third)).ended
    assert answer(never, None) == answer(None, None) == whole


def test_the_last_token_may_be_the_end(tmp_path):
    model, tokenizer = loud(tmp_path / "model")
    [ask] = records([asked("Well?")])
    model.generation_config.eos_token_id = list(range(600))
    assert write_answers(model, tokenizer, [ask], Decoding(1), progress=False)["0"] == Answer(
        "", ended=True
    )
