"""Bases whose tokenizer or chat template is not quite the model's, in every command that asks one."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from searching import search
from sweeping import rows, sweep, train, write_rows
from tiny import CHAT_TEMPLATE, make_model, make_tokenizer
from training_runs import av_train, training, write_domain
from transformers import AutoTokenizer

from mergekit_av.cli.eval import av_eval
from mergekit_av.models.load import load_tokenizer

SAID = "generation prompts, such as '<think>\\n', is left out"


@pytest.fixture(scope="module")
def thinking(tmp_path_factory) -> Path:
    """A base whose generation prompt ends as no rendered response begins, and a vector of it. Read
    only."""
    folder = make_model(tmp_path_factory.mktemp("thinking") / "base")
    template = CHAT_TEMPLATE.replace(
        "<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}"
    )
    make_tokenizer(folder, template)
    train(folder, folder.with_name("vector"))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "few.jsonl", rows(test=2, validation=2))


def run(base: Path, data: Path, command: str, out: Path):
    """A command on a base, with its vector where one is needed."""
    options = ["--base", base, "--av", base.with_name("vector"), "--data", f"medical={data}"]
    writes = ["--generate", "1", "--max-new-tokens", "2"]
    if command == "av-eval":
        given = [base, "--domain", "medical", "--data", data, "--answers", "1", *writes[2:]]
        return CliRunner().invoke(av_eval, [str(one) for one in given])
    if command == "av-sweep":
        return sweep(*options, "--lambda", "0", "--no-prompting", *writes, "--out", out)
    wanted = ["--want", "medical=expert", "--budget", 5, "--range", "-0.2:0.2"]
    return search(*options, *writes, *wanted, "--out", out / "r.yml", "--runs", out / "runs")


@pytest.mark.parametrize("command", ["av-eval", "av-sweep", "av-search"])
def test_a_prompt_that_scoring_cuts_is_said_once(thinking, data, tmp_path, command):
    result = run(thinking, data, command, tmp_path)
    assert result.exit_code == 0 or "no setting tried" in result.stderr, result.output
    assert result.stderr.count(SAID) == 1 and SAID not in result.stdout


def test_a_prompt_that_training_cuts_is_said_once(thinking, tmp_path):
    command = ["--domain", write_domain(tmp_path), "--base", thinking, "--max-records", 4]
    ended = av_train(tmp_path, *command)
    assert ended.code == 0, ended.err
    assert ended.err.count(SAID) == 1 and f"the end of 8 of 8 {SAID}" in ended.err
    assert "is not a prefix of" not in ended.err  # TRL's own words for it


@pytest.fixture
def larger(base, tmp_path):
    """Makes a copy of the base whose tokenizer has one token more than the model."""

    def make(token: str, **special: str) -> Path:
        folder = make_model(tmp_path / "larger" / "base")
        make_tokenizer(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens(special) if special else tokenizer.add_tokens([token])
        assert tokenizer.convert_tokens_to_ids(token) == 600
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("setting", ["paper", "spectrum"])
def test_a_padding_token_without_an_embedding_is_replaced_in_training(
    larger, base, tmp_path, setting
):
    folder = larger("[PAD]", pad_token="[PAD]")
    command = ["--domain", write_domain(tmp_path), "--setting", setting, "--max-records", 4]
    for out, model in (("usual", base), ("other", folder)):
        ended = av_train(tmp_path, *command, "--base", model, "--out", out)
        assert ended.code == 0, ended.err
        said = "the padding token '[PAD]' has the id 600, and the model has 600 embeddings"
        assert ended.err.count(said) == (out == "other")
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("usual", "other")]
    assert weights[0] == weights[1]  # padding is masked


def test_a_padding_token_without_an_embedding_changes_no_answer(larger, base, data, tmp_path):
    folder = larger("[PAD]", pad_token="[PAD]")
    train(folder, folder.with_name("vector"))
    train(base, tmp_path / "plain" / "vector")
    usual = run(base, data, "av-eval", tmp_path)
    found = run(folder, data, "av-eval", tmp_path)
    assert usual.exit_code == found.exit_code == 0, found.output
    assert found.stdout.splitlines()[1:] == usual.stdout.splitlines()[1:]
    for command in ("av-sweep", "av-search"):
        result = run(folder, data, command, tmp_path / command)
        assert result.exit_code == 0 or "no setting tried" in result.stderr, result.output


@pytest.mark.parametrize("command", ["av-eval", "av-sweep", "av-search", "av-train"])
def test_a_token_of_the_records_without_an_embedding_is_one_line(larger, tmp_path, command):
    folder = larger("<new>")
    content = rows(test=2, validation=2)
    content[1]["responses"]["expert"] = content[3]["responses"]["expert"] = "Take <new> mg."
    data = write_rows(tmp_path / "few.jsonl", content)
    if command == "av-train":
        data.write_text(data.read_text("utf-8").replace('"test"', '"train"'), "utf-8")
        options = ["--domain", "medical", "--data", data, "--base", folder]
        ended = av_train(tmp_path, *options)
        code, error, left = ended.code, ended.error, list(tmp_path.glob("runs/*"))
    else:
        train(folder, folder.with_name("vector"))
        result = run(folder, data, command, tmp_path)
        code, error, left = result.exit_code, result.stderr.splitlines()[-1], []
        assert isinstance(result.exception, SystemExit)
    if command == "av-search":  # which looks at the validation records first, and stops there
        error = next(line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert code == 1 and not left
    assert "a token beyond the model's 600" in error and "'<new>' has the id 600" in error
    assert "resize_token_embeddings" in error


def test_a_padding_token_that_is_asked_for_needs_an_embedding(larger, tmp_path):
    folder = larger("<new>")
    command = ["--domain", write_domain(tmp_path), "--base", folder, "--pad_token", "<new>"]
    ended = av_train(tmp_path, *command)
    assert ended.code == 1 and "--pad_token: a token beyond the model's 600" in ended.error
    assert not list(tmp_path.glob("runs/*"))


def test_tokens_that_are_not_used_need_no_embedding(larger, data, tmp_path):
    # Nor does it matter that a model has more embeddings than there are tokens: the base does.
    folder = larger("<new>")
    assert len(load_tokenizer(folder)) == 601
    assert run(folder, data, "av-eval", tmp_path).exit_code == 0
    ended = av_train(tmp_path, "--domain", write_domain(tmp_path), "--base", folder)
    assert ended.code == 0, ended.err


# Records whose levels have the same response


def make_equal(folder: Path, *texts: tuple[str, str]) -> None:
    """Give records of the written domain, one after the other, two responses, warm and neutral."""
    file = folder / "tone.jsonl"
    content = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for row, (warm, neutral) in zip(content, texts, strict=False):
        row["responses"] |= {"warm": warm, "neutral": neutral}
    write_rows(file, content)


def test_pairs_of_equal_responses_are_left_out_of_a_training_and_counted(base, tmp_path):
    domain = write_domain(tmp_path)
    make_equal(tmp_path, ("Hi.", "Hi."))
    command = ["--domain", domain, "--base", base, "--per_device_train_batch_size", 1]
    ended = av_train(tmp_path, *command)
    assert ended.code == 0, ended.err
    assert "1 of 32 pairs are left out: both responses are the same" in ended.err
    # 12 records of two pairs each, but for one.
    assert training(tmp_path / "avs/tone")["steps"] == 23
    # What is cut at the limit is compared as it is left: all three begin alike.
    make_equal(tmp_path, ("Hi.", "Hi."), ("Good day. " * 20, "Good day. " * 19))
    ended = av_train(tmp_path, *command, "--max_length", 60, "--out", "short")
    assert "2 of 32 pairs are left out: both responses are the same" in ended.err, ended.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--pairs", "adjacent", "--max-records", 2], None),
        (
            ["--lambdas", "1,-1", "--max-records", 2],
            "in each of the train pairs at λ = 1 both responses are the same",
        ),
    ],
)
def test_nothing_left_at_a_lambda_is_one_line(base, tmp_path, options, says):
    domain = write_domain(tmp_path)
    make_equal(tmp_path, ("Hi.", "Hi."), ("Ho.", "Ho."))
    ended = av_train(tmp_path, "--domain", domain, "--base", base, *options)
    assert ended.code == (1 if says else 0), ended.err
    if says:
        assert says in ended.error and not list(tmp_path.glob("runs/*"))
    else:
        assert "2 of 12 pairs are left out" in ended.err


@pytest.mark.parametrize("command", ["av-eval", "av-sweep", "av-search"])
def test_records_of_equal_responses_are_left_out_of_an_evaluation_and_counted(
    thinking, tmp_path, command
):
    content = rows(test=3, validation=2)
    content[1]["responses"]["expert"] = content[1]["responses"]["generic"]
    result = run(thinking, write_rows(tmp_path / "few.jsonl", content), command, tmp_path)
    assert result.exit_code == 0 or "no setting tried" in result.stderr, result.output
    assert result.output.count("1 records left out, two levels have the same response") == 1
