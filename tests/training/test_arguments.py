"""What av-train takes: TRL's settings under TRL's names, and every bad input in one line."""

import os
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from tiny import make_model, make_tokenizer
from training_runs import av_train, write_domain
from trl import DPOConfig

from mergekit_av.errors import AVError, UsageError
from mergekit_av.training.arguments import training_arguments
from mergekit_av.training.pairs import preference_pairs

# av-train itself silences these, which TRL causes.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")


@pytest.fixture
def config(tmp_path):
    """Write a YAML file and return its path."""

    def write(text: str):
        path = tmp_path / "config.yml"
        path.write_text(text, "utf-8")
        return path

    return write


def test_the_papers_setting():
    arguments = training_arguments(setting="paper")
    assert (arguments.loss_type, arguments.beta) == (["ipo"], 0.1)
    assert arguments.per_device_train_batch_size == 4 and arguments.num_train_epochs == 1
    assert arguments.precompute_ref_log_probs and arguments.load_best_model_at_end
    assert arguments.loss_weights is None
    assert arguments.use_cpu == (torch.accelerator.current_accelerator() is None)


def test_the_default_trains_on_the_preferred_answers_as_well():
    arguments = training_arguments()
    assert (arguments.loss_type, arguments.loss_weights) == (["ipo", "sft"], [0.5, 1.0])
    assert arguments.eval_strategy == "no" and arguments.save_strategy == "steps"


@pytest.mark.parametrize("typed", [["--loss_type", "ipo"], ["--loss-type=ipo"]])
def test_other_losses_do_not_get_the_weights_of_the_settings_own(typed, config):
    assert training_arguments(typed).loss_weights is None
    assert training_arguments([], config("loss_type: ipo\n")).loss_weights is None
    assert training_arguments([*typed, "--loss_weights", "2"]).loss_weights == [2.0]


def test_command_line_wins_over_file_over_defaults(config):
    file = config("learning_rate: 2e-5\nbeta: 0.3\nseed: 7\n")
    arguments = training_arguments(["--beta=0.5", "--max-grad-norm", "2"], file, seed=3)
    assert (arguments.learning_rate, arguments.seed) == (2e-5, 7)
    assert (arguments.beta, arguments.max_grad_norm) == (0.5, 2.0)


def test_file_takes_every_kind_of_value(config):
    file = config(
        "loss_type: [ipo, sft]\nloss_weights: [1, 0.5]\nmax_length: null\nbf16: no\n"
        "lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 2}\n"
        "report_to: [none]\nrun_name: my run\n"
    )
    arguments = training_arguments(config=file)
    assert (arguments.loss_type, arguments.loss_weights) == (["ipo", "sft"], [1.0, 0.5])
    assert arguments.max_length is None and arguments.bf16 is False
    assert arguments.lr_scheduler_kwargs == {"num_cycles": 2}
    assert (arguments.report_to, arguments.run_name) == ([], "my run")


def test_every_field_of_dpoconfig_is_an_option():
    plain = {
        field.name: field.default
        for field in fields(DPOConfig)
        if field.init
        and isinstance(field.default, bool | int | float | str)
        and field.default != ""
    }
    assert len(plain) > 70
    changed = {"use_cpu": True, "learning_rate": 3e-5, "optim": "sgd", "logging_steps": 7}
    given = {**plain, **changed}
    # All at once: an option that is not known would end the parsing.
    arguments = training_arguments([f"--{name}={value}" for name, value in given.items()])
    expected = DPOConfig(**given, bf16=False)
    for name in given:
        assert getattr(arguments, name) == getattr(expected, name), name


@pytest.mark.parametrize(
    "options",
    [["--learning_rte", "1"], ["--learning", "1"], ["extra"], ["-h"], ["--beta", "high"],
     ["--num_train_epochs"], ["--bf16", "perhaps"], ["--lr_scheduler_type", "sine"]],
)  # fmt: skip
def test_unknown_options_and_values_are_usage_errors(options):
    with pytest.raises(UsageError) as raised:
        training_arguments(options)
    assert options[0].lstrip("-") in raised.value.message and "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("text", "named"),
    [("learning_rte: 1", "learning_rte"), ("beta: high", "beta"), ("beta:", "beta"),
     ("beta: [1, 2]", "2"), ("seed: {a: 1}", "seed")],
)  # fmt: skip
def test_unknown_fields_and_values_of_the_file_are_usage_errors(text, named, config):
    with pytest.raises(UsageError) as raised:
        training_arguments(config=config(text))
    assert named in raised.value.message and "\n" not in raised.value.message


@pytest.mark.parametrize("text", ["- a list", "a: b: c", "just words", "\x00"])
def test_file_that_is_no_mapping_is_named(text, config):
    with pytest.raises(AVError, match=r"config.yml"):
        training_arguments(config=config(text))


@pytest.mark.parametrize(
    "options",
    [["--learning_rate", "nan"], ["--learning_rate", "-1"], ["--learning_rate", "inf"],
     ["--beta", "0"], ["--num_train_epochs", "0"], ["--weight_decay", "nan"],
     ["--load_best_model_at_end"], ["--loss_weights", "1", "2", "3"],
     ["--lr_scheduler_kwargs", "{"], ["--trust_remote_code"], ["--resume_from_checkpoint", "x"],
     ["--model_init_kwargs", '{"dtype": "int8"}'], ["--model_init_kwargs", '{"revision": "a"}']],
)  # fmt: skip
def test_values_that_cannot_be_are_one_line(options):
    with pytest.raises(AVError) as raised:
        training_arguments(options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--load_in_4bit", "true"], "go with --use_peft"),
     (["--model_init_kwargs", '{"dtype": "bfloat16"}'], "goes with --use_peft")],
)  # fmt: skip
def test_weights_that_are_trained_are_not_narrowed(options, said):
    with pytest.raises(AVError, match=said):
        training_arguments(options, setting="paper")
    training_arguments(options, setting="lora")


def test_weights_have_four_bits_or_eight():
    with pytest.raises(AVError, match="can't be had at once"):
        training_arguments(["--load_in_4bit", "true", "--load_in_8bit", "true"])


def test_fsdp_which_accelerate_would_leave_out_is_refused(monkeypatch):
    for name in list(os.environ):
        if "FSDP" in name:
            monkeypatch.delenv(name)
    with pytest.raises(AVError, match="--fsdp can't be used without an accelerator"):
        training_arguments(["--fsdp", "full_shard", "--use_cpu", "true"])


def test_what_goes_to_the_hub_is_the_vector_and_no_token_is_an_option():
    with pytest.raises(AVError, match="pass --push-to-hub ID: the vector goes to the Hub"):
        training_arguments(["--push_to_hub", "true"])
    with pytest.raises(AVError, match="a token is no option") as raised:
        training_arguments(["--hub_token", "hf_secret"])
    assert "hf_secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("pairing", "expected"), [("adjacent", "ab bc cd"), ("all", "ab ac ad bc bd cd")]
)
def test_better_levels_are_preferred(pairing, expected, make_record):
    rows = preference_pairs([make_record("abcd")], pairing)
    assert " ".join(row["chosen"] + row["rejected"] for row in rows) == expected
    assert {row["prompt"] for row in rows} == {"a question"}


@pytest.fixture
def make_record():
    from mergekit_av.data.records import Record

    return lambda levels: Record("1", "a question", {level: level for level in levels}, "train")


@pytest.fixture
def folder(tmp_path):
    write_domain(tmp_path)
    return tmp_path


# What is wrong → options beside `--base BASE` that show it, exit code, what the line says.
BAD_INPUT = {
    "no domain": ([], 2, "--domain"),
    "unknown domain": (["--domain", "medicine"], 1, "no domain 'medicine'"),
    "unknown option": (["--domain", "tone.yml", "--lerning_rate", "1"], 2, "--lerning_rate"),
    "no config file": (["--domain", "tone.yml", "--config", "none.yml"], 1, "none.yml"),
    "config is no YAML": (["--domain", "tone.yml", "--config", "tone.jsonl"], 1, "tone.jsonl"),
    "unknown field": (["--domain", "tone.yml", "--config", "tone.yml"], 2, "no field 'name'"),
    "records missing": (["--domain", "tone.yml", "--data", "none.jsonl"], 1, "none.jsonl"),
    "base missing": (["--domain", "tone.yml", "--base", "./nowhere"], 1, "nowhere"),
    "out is under a file": (["--domain", "tone.yml", "--out", "tone.yml/av"], 1, "tone.yml/av"),
    "out exists": (["--domain", "tone.yml", "--out", "."], 1, "exists"),
    "out is not ours": (["--domain", "tone.yml", "--out", ".", "--overwrite"], 1, "replaces only"),
    "run folder is not ours": (["--domain", "tone.yml", "--output_dir", "."], 1, "--output_dir"),
    "domain twice": (["--domain", "tone.yml", "--domain", "tone.yml"], 2, "tone is given twice"),
    "one out for two": (["--domain", "tone.yml", "--domain", "legal", "--out", "a"], 2, "--out"),
    "one run folder for two": (
        ["--domain", "tone.yml", "--domain", "legal", "--output_dir", "a"], 2, "--output_dir",
    ),
    "nothing fits": (["--domain", "tone.yml", "--max_length", "3"], 1, "in 3 tokens"),
    "unknown loss": (["--domain", "tone.yml", "--loss_type", "ipso"], 1, "Unknown loss type: ipso"),
    "settings that TRL refuses": (["--domain", "tone.yml", "--loss_type", "exo_pair"], 1, "smooth"),
    "unknown metric": (
        ["--domain", "tone.yml", "--metric_for_best_model", "eval_luck"], 1, "eval_luck",
    ),
    "divergence": (["--domain", "tone.yml", "--learning_rate", "1e30"], 1, "diverged"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", BAD_INPUT)
def test_bad_input_is_one_line(wrong, folder, base):
    options, code, says = BAD_INPUT[wrong]
    ended = av_train(folder, "--base", base, *options)
    assert ended.code == code, ended.err
    assert ended.error.startswith("Error: ") and says in ended.error
    assert code == 1 or ended.err.count("\n") == 1  # no usage, no bars
    assert not list(folder.glob("avs/*")) and not ended.out


@pytest.mark.parametrize("setting", ["ipso", "exo_pair"])
def test_refused_settings_leave_nothing_in_the_way(setting, folder, base):
    command = ["--domain", "tone.yml", "--base", base]
    assert av_train(folder, *command, "--loss_type", setting).code == 1
    assert av_train(folder, *command).code == 0


def test_too_few_records_are_one_line(tmp_path, base):
    domain = write_domain(tmp_path, train=3, validation=0)
    ended = av_train(tmp_path, "--domain", domain, "--base", base)
    assert ended.code == 1 and "validation split" in ended.error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("lacks", ["weights", "config.json", "tokenizer"])
def test_base_that_lacks_something_is_one_line(lacks, folder):
    incomplete = make_model(folder / "incomplete")
    if lacks == "tokenizer":
        assert not (incomplete / "tokenizer.json").exists()
    else:
        make_tokenizer(incomplete)
        (incomplete / {"weights": "model.safetensors"}.get(lacks, lacks)).unlink()
    ended = av_train(folder, "--domain", "tone.yml", "--base", "incomplete")
    assert ended.code == 1 and "incomplete" in ended.error
    assert not list(folder.glob("avs/*")) and not list(folder.glob("runs/*"))


def test_vector_as_base_is_refused(folder, vectors):
    ended = av_train(folder, "--domain", "tone.yml", "--base", vectors["medical"])
    assert ended.code == 1 and "is an alignment vector, not a model" in ended.error


def test_base_without_chat_template_works_and_the_format_is_stated(folder):
    plain = make_model(folder / "plain")
    make_tokenizer(plain, chat_template=None)
    ended = av_train(folder, "--domain", "tone.yml", "--base", "plain", "--keep-aligned")
    assert ended.code == 0 and "plain: no chat template" in ended.err
    # Whoever loads the aligned model writes prompts as it was trained on.
    assert "Assistant:" in (folder / "runs/tone/aligned/chat_template.jinja").read_text("utf-8")


TELEMETRY = """
from contextlib import suppress
from mergekit_av.errors import AVError, UsageError
from mergekit_av.cli.train import av_train
with suppress(AVError):
    av_train.main(["--domain", "none"], standalone_mode=False)
from huggingface_hub import constants
print(constants.HF_HUB_DISABLE_TELEMETRY)
"""


@pytest.mark.parametrize(
    ("given", "off"),
    [
        ({}, "True"),
        pytest.param({"HF_HUB_DISABLE_TELEMETRY": "0"}, "False", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_reported_to_the_hub_unless_the_user_wants_it(given, off):
    signs = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {name: value for name, value in os.environ.items() if name not in signs}
    done = subprocess.run(
        [sys.executable, "-c", TELEMETRY],
        env={**environment, **given},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == off, done.stderr
