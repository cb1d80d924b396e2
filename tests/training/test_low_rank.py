"""av-train's default: factors of low rank, whose scale is λ."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import make_model, make_tokenizer
from training_runs import (
    LEARNS,
    av_train,
    contents,
    gains,
    in_two_processes,
    training,
    write_domain,
)
from transformers import AutoModelForCausalLM

from mergekit_av import AlignmentVector, load_domain, load_records
from mergekit_av.errors import AVError
from mergekit_av.training.arguments import training_arguments
from mergekit_av.training.base import load_base
from mergekit_av.training.lora import lora_config
from mergekit_av.vectors.low_rank_delta import ADAPTER

LOW_RANK = [
    "--setting", "lora", *LEARNS, "--num_train_epochs", "8", "--lora_r", "8",
    "--lora_alpha", "8", "--lambdas", "1,-0.5,-1",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base):
    """A folder with a vector that was trained as factors. Read only."""
    folder = tmp_path_factory.mktemp("low")
    ended = av_train(folder, "--domain", write_domain(folder), "--base", base, *LOW_RANK)
    assert ended.code == 0, ended.err
    return folder


def test_each_level_is_trained_at_its_own_lambda(trained, base):
    for value, own in ((1, 0), (-0.5, 1), (-1, 2)):
        gain = gains(trained / "avs/tone", trained / "tone.yml", base, value).mean(axis=0)
        assert gain.argmax() == own, (value, gain)


def test_the_vector_is_small_and_an_adapter(trained, base):
    vector = AlignmentVector.open(trained / "avs/tone")
    vector.check()
    vector.check_base(base)
    assert vector.metadata.low_rank["rank"] == 8
    assert vector.metadata.precision["dtype"] == "bfloat16"
    said = training(trained / "avs/tone")
    assert said["method"] == "DPO, LoRA of rank 8" and said["lora_r"] == 8
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([[5, 17, 301, 42]])
    wanted = vector.apply_to(model)(ids).logits
    found = PeftModel.from_pretrained(model, trained / "avs/tone")(ids).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ([], {"model.layers.1"}),  # of two, by default
        (["--lora_layers", "1"], {"model.layers.0", "model.layers.1"}),
        (["--lora_layers", "0.01"], {"model.layers.1"}),
    ],
)
def test_the_upper_layers_get_factors(options, layers, base):
    found = lora_config(training_arguments(options, setting="lora"), base).target_modules
    assert {".".join(name.split(".")[:3]) for name in found} == layers
    assert len(found) == 7 * len(layers)


def test_layers_that_are_named_are_taken_as_they_are(base):
    named = ["--lora_target_modules", "q_proj", "v_proj"]
    found = lora_config(training_arguments(named, setting="lora"), base)
    assert found.target_modules == {"q_proj", "v_proj"}
    with pytest.raises(AVError, match="share of more than 0 up to 1, not 0"):
        training_arguments(["--lora_layers", "0"])


def test_a_killed_run_continues_to_the_same_vector(tmp_path, base, trained):
    command = ["--domain", write_domain(tmp_path), "--base", base, *LOW_RANK]
    killed = av_train(tmp_path, *command, kill_at="write .*checkpoint-144/.*json")
    assert killed.code == -9
    ended = av_train(tmp_path, *command, "--resume")
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "avs/tone") == contents(trained / "avs/tone")


def test_a_run_that_was_killed_at_its_end_is_not_trained_again(tmp_path, base, trained):
    command = ["--domain", write_domain(tmp_path), "--base", base, *LOW_RANK]
    killed = av_train(tmp_path, *command, kill_at="write .*history.json")
    assert killed.code == -9
    ended = av_train(tmp_path, *command, "--resume")
    assert ended.code == 0 and "step/s" not in ended.err, ended.err
    ours, theirs = (load_file(folder / "avs/tone" / ADAPTER) for folder in (tmp_path, trained))
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_the_best_factors_are_kept(tmp_path, base):
    # The last ones are not: the rate is far too high.
    watched = [
        "--eval_strategy", "steps", "--load_best_model_at_end", "true", "--eval_steps", "6",
        "--save_steps", "6", "--patience", "99", "--num_train_epochs", "2", "--loss_type", "ipo",
        "--lambdas", "1,-1", "--pairs", "adjacent", "--dtype", "float32", "--lora_layers", "1",
    ]  # fmt: skip
    domain = write_domain(tmp_path)
    command = ["--domain", domain, "--base", base, *LOW_RANK, *watched]
    ended = av_train(tmp_path, *command, "--learning_rate", "0.1")
    assert ended.code == 0, ended.err
    said = training(tmp_path / "avs/tone")
    losses = {e["step"]: e["eval_loss"] for e in said["losses"] if "eval_loss" in e}
    best = min(losses, key=losses.get)
    assert best == said["best_step"] != max(losses)
    # IPO: the square of the margin's distance from 1/2β, of each end over its neighbour.
    records = load_records(load_domain(domain))
    held_out = torch.tensor([record.split == "validation" for record in records])
    found = []
    for value, own in ((1, 0), (-1, 2)):
        gain = gains(tmp_path / "avs/tone", domain, base, value)[held_out]
        found.append((gain[:, own] - gain[:, 1] - 2) ** 2)
    assert losses[best] == pytest.approx(torch.stack(found).mean().item(), rel=1e-3)


ONE_STEP = ["--num_train_epochs", "1", "--dtype", "float32", "--bf16", "false"]


def test_two_processes_train_as_two_accumulated_batches(tmp_path, base):
    command = ["--domain", write_domain(tmp_path), "--base", base, *LOW_RANK, *ONE_STEP]
    alone = av_train(tmp_path, *command, "--gradient_accumulation_steps", "2")
    assert alone.code == 0, alone.err
    both = in_two_processes(tmp_path, *command, "--out", "avs/two")
    assert [ended.code for ended in both] == [0, 0], both[0].err + both[1].err
    one, two = (AlignmentVector.open(tmp_path / f"avs/{name}") for name in ("tone", "two"))
    for name in one.delta.names():
        torch.testing.assert_close(two.delta.dense(name), one.delta.dense(name), rtol=0, atol=1e-5)
    assert one.metadata.statistics["norm"] > 0.1


def test_all_weights_are_another_setting(tmp_path, base):
    options = ["--setting", "lora", "--use_peft", "false", "--base", base]
    ended = av_train(tmp_path, "--domain", write_domain(tmp_path), *options)
    assert ended.code == 2 and "to train all weights, --setting spectrum" in ended.err
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_continued_at_another_rank(tmp_path, base):
    command = ["--domain", write_domain(tmp_path), "--base", base, *LOW_RANK]
    assert av_train(tmp_path, *command, kill_at="write .*history").code == -9
    ended = av_train(tmp_path, *command, "--lora_r", "4", "--resume")
    assert ended.code == 1 and "was started with lora_r 8, not 4" in ended.err


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_factors_beside_quantised_weights_are_of_the_base_as_it_is(tmp_path, bits):
    base = make_model(tmp_path / "base", hidden_size=64)  # four bits come in blocks of 64
    make_tokenizer(base)
    domain = write_domain(tmp_path)
    command = ["--domain", domain, "--base", base, *LOW_RANK, "--lambdas", "1,-1"]
    ended = av_train(tmp_path, *command, f"--load_in_{bits}", "true")
    assert ended.code == 0, ended.err
    AlignmentVector.open(tmp_path / "avs/tone").check_base(base)
    assert training(tmp_path / "avs/tone")[f"load_in_{bits}"] is True
    for value, own in ((1, 0), (-1, 2)):
        gain = gains(tmp_path / "avs/tone", domain, base, value).mean(axis=0)
        assert gain.argmax() == own, (value, gain)


@pytest.mark.parametrize(
    ("options", "dtype", "layer"),
    [
        ([], torch.float32, "Linear"),
        (["--model_init_kwargs", '{"dtype": "bfloat16"}'], torch.bfloat16, "Linear"),
        (["--model_init_kwargs", '{"dtype": "auto"}'], torch.bfloat16, "Linear"),
        (["--load_in_4bit", "true"], None, "Linear4bit"),
        (["--load_in_8bit", "true"], None, "Linear8bitLt"),
    ],
)
def test_the_base_is_kept_as_the_options_say(options, dtype, layer, base):
    model = load_base(str(base), training_arguments([*options, "--use_cpu", "true"])).model
    found = model.model.layers[1].mlp.up_proj
    assert type(found).__name__ == layer
    assert dtype is None or found.weight.dtype == dtype


def test_a_narrow_base_beside_factors(tmp_path, base):
    narrow = ["--model_init_kwargs", '{"dtype": "bfloat16"}', "--lambdas", "1,-1"]
    domain = write_domain(tmp_path)
    ended = av_train(tmp_path, "--domain", domain, "--base", base, *LOW_RANK, *narrow)
    assert ended.code == 0, ended.err
    said = training(tmp_path / "avs/tone")
    assert said["model_init_kwargs"] == {"dtype": "bfloat16"}
    gain = gains(tmp_path / "avs/tone", domain, base, 1).mean(axis=0)
    assert gain.argmax() == 0, gain


def test_the_paper_s_setting_with_factors(tmp_path, base):
    options = ["--use_peft", "true", "--lora_dropout", "0", "--learning_rate", "0.01"]
    ended = av_train(tmp_path, "--domain", write_domain(tmp_path), "--base", base, *options)
    assert ended.code == 0, ended.err
    assert AlignmentVector.open(tmp_path / "avs/tone").metadata.low_rank["rank"] == 16


def test_a_held_domain_moves_less(tmp_path, base):
    domain = write_domain(tmp_path)
    others = write_domain(tmp_path, "manners", of="friend")
    moved = {}
    for name, more in (("free", ()), ("held", ("--hold", "manners.yml", "--hold-weight", "50"))):
        command = ["--domain", domain, "--base", base, *LOW_RANK, "--out", f"avs/{name}", *more]
        ended = av_train(tmp_path, *command)
        assert ended.code == 0, ended.err
        moved[name] = gains(tmp_path / "avs" / name, others, base, 1).abs().mean()
    drifts = [e["drift"] for e in training(tmp_path / "avs/held")["losses"] if "loss" in e]
    assert drifts[0] == pytest.approx(0, abs=1e-6) and max(drifts) > 1e-4
    assert moved["held"] < 0.7 * moved["free"]
