"""av-train --hold: domains in which a vector changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence
from training_runs import (
    BOTH,
    assert_two_processes_accumulate,
    av_train,
    contents,
    gains,
    training,
    write_domain,
)

from mergekit_av import AlignmentVector, load_domain, load_records
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.training.drift import IDS, PADDING, PROMPT, collate, drift, held_texts


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base):
    """A folder with vectors of tone, `free` and `held` in manners. Read only."""
    folder = tmp_path_factory.mktemp("held")
    write_domain(folder)
    write_domain(folder, "manners", of="friend")
    for name, options in (("free", ()), ("held", ("--hold", "manners.yml"))):
        command = ["--domain", "tone.yml", "--base", base, *BOTH, "--out", f"avs/{name}", *options]
        ended = av_train(folder, *command)
        assert ended.code == 0, ended.err
    return folder


def logits_of(model):
    """What `drift` asks of the base."""
    return lambda **inputs: model(**inputs).logits


@pytest.mark.parametrize(("value", "own"), [(1, 0), (-1, 2)])
def test_a_held_domain_stays_and_the_own_one_moves(trained, base, value, own):
    moved = {}
    for name in ("free", "held"):
        of = trained / "avs" / name
        gain = gains(of, trained / "tone.yml", base, value).mean(dim=0)
        assert gain[own] - gain[1] == pytest.approx(2, abs=0.7), name
        moved[name] = gains(of, trained / "manners.yml", base, value).abs().mean()
    assert moved["held"] < 0.5 * moved["free"]


def test_the_vector_says_what_was_held_and_how_far_it_drifted(trained):
    history = training(trained / "avs/held")
    assert history["held"] == ["manners"] and history["hold_weight"] == 2
    drifts = [entry["drift"] for entry in history["losses"] if "loss" in entry]
    assert drifts[0] == 0 and max(drifts) > 0.1
    assert not {"held", "hold_weight"} & set(training(trained / "avs/free"))


def test_the_validation_loss_is_what_is_optimised(tmp_path, base):
    # Held texts differ by split: those of validation count in the validation loss, and only they.
    domain = write_domain(tmp_path)
    write_domain(tmp_path, "manners", of="friend")
    command = ["--domain", domain, "--hold", "manners.yml", "--hold-weight", 3, "--base", base]
    whole = ["--dtype", "float32", "--bf16", "false", "--num_train_epochs", "1"]
    whole += ["--per_device_eval_batch_size", "8"]
    ended = av_train(tmp_path, *command, *BOTH, "--lambdas", "1", *whole)
    assert ended.code == 0, ended.err
    logged = {e["step"]: e for e in training(tmp_path / "avs/tone")["losses"] if "eval_loss" in e}
    # The vector is that of the lowest loss.
    lowest = min(logged.values(), key=lambda entry: entry["eval_loss"])
    assert lowest["eval_drift"] > 0
    records = load_records(load_domain(domain))
    held_out = torch.tensor([record.split == "validation" for record in records])
    gain = gains(tmp_path / "avs/tone", domain, base, 1)[held_out]
    ipo = torch.cat([(gain[:, i] - gain[:, i + 1] - 2) ** 2 for i in (0, 1)]).mean().item()
    assert lowest["eval_loss"] == pytest.approx(ipo + 3 * lowest["eval_drift"], rel=1e-3)
    # Beside eight pairs in one batch, the first eight of the shuffled texts.
    others = load_records(load_domain(tmp_path / "manners.yml"))
    tokenizer, model = load_tokenizer(base), load_model(base)
    texts = held_texts([r for r in others if r.split == "validation"], tokenizer, None, 42)[:8]
    batch = collate([{IDS: ids, PROMPT: prompt} for ids, prompt in texts])
    moved = AlignmentVector.open(tmp_path / "avs/tone").apply_to(load_model(base))
    with torch.no_grad():
        found = drift(moved, logits_of(model), batch[IDS], batch[PROMPT]).item()
    assert lowest["eval_drift"] == pytest.approx(found, rel=1e-3)


def test_a_killed_run_continues_to_the_same_vector(tmp_path, base, trained):
    write_domain(tmp_path)
    write_domain(tmp_path, "manners", of="friend")
    command = ["--domain", "tone.yml", "--hold", "manners.yml", "--base", base, *BOTH]
    killed = av_train(tmp_path, *command, kill_at="write .*checkpoint-27/.*json")
    assert killed.code == -9
    other = av_train(tmp_path, *command, "--hold-weight", "1", "--resume")
    assert other.code == 1 and "was started with hold_weight 2.0, not 1.0" in other.err
    ended = av_train(tmp_path, *command, "--resume")
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "avs/tone") == contents(trained / "avs/held")


def test_two_processes_train_as_two_accumulated_batches(tmp_path, base):
    # Each takes the mean over the tokens of its own texts.
    write_domain(tmp_path)
    write_domain(tmp_path, "manners", of="friend")
    command = ["--domain", "tone.yml", "--hold", "manners.yml", "--base", base, *BOTH]
    assert_two_processes_accumulate(tmp_path, *command, "--num_train_epochs", "1")


def test_each_of_several_domains_is_held_where_it_is_not_trained(tmp_path, base):
    write_domain(tmp_path)
    write_domain(tmp_path, "manners", of="friend")
    names = ["tone.yml", "manners.yml"]
    domains = [part for name in names for part in ("--domain", name)]
    held = [part for name in names for part in ("--hold", name)]
    # In the paper's setting too, which is trained at λ = 1 alone.
    ended = av_train(tmp_path, *domains, *held, "--base", base, "--max-records", 4)
    assert ended.code == 0, ended.err
    for own, other in (("tone", "manners"), ("manners", "tone")):
        history = training(tmp_path / "avs" / own)
        assert history["held"] == [other] and "lambdas" not in history
        assert history["steps"] == 2  # two pairs of each of four records, in batches of four


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--hold", "tone.yml"], "--hold: tone is what is trained"),
        (["--hold", "cooking"], "no domain 'cooking'"),
        (["--hold", "manners.yml", "--hold", "manners.yml"], "--hold: manners is given twice"),
        (["--hold", "manners.yml", "--hold-weight", "0"], "--hold-weight"),
        (["--hold", "manners.yml", "--hold-weight", "nan"], "--hold-weight is not a number"),
        (["--hold", "untrained.yml"], "untrained: none of the 4 records is in the train split"),
        (["--hold", "blind.yml"], "blind: none of the 12 records is in the validation split"),
        (["--hold-weight", "2"], "--hold-weight goes with --hold"),
        (
            ["--hold", "manners.yml", "--max_length", "40"],
            "no prompt of the held domains leaves room",
        ),
    ],
)
def test_what_cannot_be_held_is_refused(tmp_path, base, options, says):
    write_domain(tmp_path)
    write_domain(tmp_path, "manners", of="friend " * 100)
    write_domain(tmp_path, "untrained", train=0)
    write_domain(tmp_path, "blind", validation=0)
    ended = av_train(tmp_path, "--domain", "tone.yml", "--base", base, *options)
    assert ended.code in (1, 2) and says in ended.err, ended.err
    assert "Traceback" not in ended.err and not list(tmp_path.glob("*/*"))


def test_a_joint_model_is_summed_with_nothing(tmp_path, base):
    ended = av_train(tmp_path, "--joint", "medical=expert", "--base", base, "--hold", "legal")
    assert ended.code == 2 and "--hold goes with --domain" in ended.err


@pytest.fixture(scope="module")
def two_models(base):
    """The base, and a model whose weights differ."""
    model, moved = load_model(base), load_model(base)
    with torch.no_grad():
        for weight in moved.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return model, moved


@settings(deadline=None)
@given(
    texts=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_drift_is_the_divergence_of_the_responses_tokens_alone(two_models, texts, seed):
    generator = torch.Generator().manual_seed(seed)
    model, moved = two_models
    weights = logits_of(model)
    rows = [
        {
            IDS: torch.randint(5, 90, (prompt + response,), generator=generator).tolist(),
            PROMPT: prompt,
        }
        for prompt, response in texts
    ]
    batch = collate(rows)
    assert batch[IDS].eq(PADDING).sum() == sum(batch[IDS].shape[1] - len(r[IDS]) for r in rows)
    parts = []
    for row in rows:
        ids = torch.tensor([row[IDS]])
        before = slice(row[PROMPT] - 1, len(row[IDS]) - 1)
        both = [Categorical(logits=m(ids).logits[0, before].double()) for m in (model, moved)]
        parts.append(kl_divergence(*both))
    expected = torch.cat(parts).mean().item()
    with torch.no_grad():
        found = drift(moved, weights, batch[IDS], batch[PROMPT]).item()
        assert drift(model, weights, batch[IDS], batch[PROMPT]).item() == pytest.approx(0, abs=1e-6)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found > 1e-6
