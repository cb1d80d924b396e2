"""av-eval --judge, with judges that are right, biased, talkative or out of reach."""

import json
import re
import time
from pathlib import Path

import pytest
from chat_server import Answer, Fault
from click.testing import CliRunner
from processes import finish, start

from mergekit_av.cli.eval import av_eval
from mergekit_av.data.domain import load_domain

MEDICAL = load_domain("medical")
RESPONSES = {"expert": "Take 5 mg.", "generic": "See a doctor.", "avoidance": "I can't say."}
COUNT = 12


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def data(write_jsonl) -> Path:
    rows = [
        {
            "id": f"r{i}",
            "split": "test",
            "query": f"What now, number {i}?",
            "responses": {level: f"{i}: {text}" for level, text in RESPONSES.items()},
        }
        for i in range(COUNT)
    ]
    return write_jsonl(rows)


@pytest.fixture
def arguments(base, data, chat, tmp_path, monkeypatch):
    """What judges three short answers of the tiny model, beside the nine responses of their records."""
    monkeypatch.chdir(tmp_path)
    return [
        str(base), "--domain", "medical", "--data", str(data), "--max-new-tokens", "4", "--judge",
        "--judge-model", "tiny", "--judge-base-url", chat.url, "--judge-sample", "3",
        "--judge-retries", "0",
    ]  # fmt: skip


def run(arguments, *more):
    return CliRunner().invoke(av_eval, [*arguments, *map(str, more)])


def judged(arguments, *more) -> tuple[dict, str]:
    """The judge's part of the report, for the one domain, and what was printed."""
    result = run(arguments, *more, "--json", "report.json")
    assert result.exit_code == 0, result.output
    return json.loads(Path("report.json").read_text("utf-8"))["judge"], result.stdout


def refused(arguments, *more, code: int = 1) -> str:
    result = run(arguments, *more)
    assert result.exit_code == code and isinstance(result.exception, SystemExit), result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and "Traceback" not in result.stderr
    return last


def options(prompt: str) -> dict[str, str]:
    """Letter → level, in the order of the prompt."""
    levels = {text: level for level in MEDICAL.levels for text in MEDICAL.wordings(level)}
    return {letter: levels[text] for letter, text in shown(prompt).items()}


def shown(prompt: str) -> dict[str, str]:
    """Letter → what stands behind it."""
    return dict(re.findall(r"^([A-Z])\) (.*)$", prompt, re.MULTILINE))


def answer_in(prompt: str) -> str:
    return re.search(r"<answer>\n(.*)\n</answer>", prompt, re.DOTALL)[1]


def level_of(answer: str) -> str | None:
    return next((level for level, text in RESPONSES.items() if answer.endswith(text)), None)


def knowing(body: dict, generated: str = "avoidance") -> str:
    """A judge that knows the level of each response, and sees one in what the model writes."""
    prompt = body["messages"][-1]["content"]
    wanted = level_of(answer_in(prompt)) or generated
    return next(letter for letter, level in options(prompt).items() if level == wanted)


def test_a_judge_that_is_right_agrees_with_what_is_known(arguments, chat):
    chat.write = knowing
    report, out = judged(arguments)
    [domain] = report["domains"]
    assert domain["check"]["kappa"] == 1 and domain["check"]["accuracy"]["value"] == 1
    assert domain["check"]["tally"]["items"] == 9
    assert domain["check"]["confusion"]["generic"] == {"expert": 0, "generic": 3, "avoidance": 0}
    shares = {level: share["value"] for level, share in domain["shares"].items()}
    assert shares == {"expert": 0, "generic": 0, "avoidance": 1}
    low, high = (domain["shares"]["avoidance"][end] for end in ("low", "high"))
    assert 0.43 < low < 0.44 and high == 1  # Wilson, 3 of 3
    assert "medical (3)  expert     0.00" in out
    assert "Cohen's κ 1.00, accuracy 1.00 (0.70 … 1.00)" in out and "says" not in out
    # The answers and what was said of them are there to be read.
    assert [set(one) for one in domain["verdicts"]] == [{"id", "answer", "labels", "label"}] * 3
    assert {one["label"] for one in domain["verdicts"]} == {"avoidance"}
    assert report["model"] == "tiny" and report["spent"]["calls"] == len(chat.requests) == 12


def test_the_judge_is_shown_query_answer_and_levels_and_no_known_level(arguments, chat):
    chat.write = knowing
    judged(arguments)
    for prompt in chat.prompts:
        assert re.search(r"<question>\nWhat now, number \d+\?\n</question>", prompt)
        assert sorted(options(prompt)) == ["A", "B", "C"]
        assert set(options(prompt).values()) == set(MEDICAL.levels)
        assert "{" not in prompt
    # Order, letters and wording are drawn apart from one another.
    assert len({tuple(options(prompt)) for prompt in chat.prompts}) > 2
    assert len({tuple(options(prompt).values()) for prompt in chat.prompts}) > 2
    texts = {text for prompt in chat.prompts for text in shown(prompt).values()}
    for level in MEDICAL.levels:
        assert len(texts & set(MEDICAL.wordings(level))) > 1


def test_a_judge_that_always_says_a_shows_itself(arguments, chat):
    chat.write = lambda body: "A"
    arguments[arguments.index("--judge-sample") + 1] = str(COUNT)
    report, out = judged(arguments, "--judge-repeats", 3)
    [domain] = report["domains"]
    assert abs(domain["check"]["kappa"]) < 0.4
    assert "this judge does not see the levels" in out
    assert domain["check"]["tally"]["disputed"] > 18  # of 36


@pytest.mark.parametrize("prose", ["The answer is A.", "A or B", "I think it is generic", "Z", ""])
def test_what_is_no_label_is_counted_and_not_guessed(arguments, chat, prose):
    chat.write = lambda body: prose
    report, out = judged(arguments)
    [domain] = report["domains"]
    assert domain["shares"] == {} and domain["check"]["kappa"] is None
    assert domain["tally"]["unparseable"] == 3 and domain["tally"]["undecided"] == 3
    assert "3 answers, 3 judgements, 3 of them no label" in out and "it gave no label" in out
    assert "judged share" not in out  # there is none


def test_a_letter_may_have_emphasis_and_thoughts_around_it(arguments, chat):
    around = iter(["**{}**", "({})", "{}.", " {}\n", "<think>A? B?\nNo.</think>\n{}"] * 3)
    chat.write = lambda body: next(around).format(knowing(body))
    report, _ = judged(arguments, "--judge-concurrency", 1)
    assert report["domains"][0]["check"]["kappa"] == 1


def test_a_judge_that_runs_out_of_tokens_is_said_to(arguments, chat):
    chat.write = lambda body: "Let me think about this"
    report, out = judged(arguments, "--judge-max-tokens", 2)
    assert report["domains"][0]["tally"]["cut_off"] == 3
    assert "3 cut off (--judge-max-tokens)" in out


def test_repeats_ask_in_other_words_and_disagreement_is_reported(arguments, chat):
    def torn(body):
        """Right on responses; of the model's own answers it takes what stands first."""
        prompt = body["messages"][-1]["content"]
        return knowing(body) if level_of(answer_in(prompt)) else next(iter(options(prompt)))

    chat.write = torn
    report, out = judged(arguments, "--judge-repeats", 3)
    [domain] = report["domains"]
    assert len(set(chat.prompts)) == len(chat.prompts) == 36
    assert all(len(one["labels"]) == 3 for one in domain["verdicts"])
    assert domain["check"]["tally"]["disputed"] == 0 < domain["tally"]["disputed"]
    disputed = sum(len(set(one["labels"])) > 1 for one in domain["verdicts"])
    assert f"{disputed} answers got different labels" in out
    for one in domain["verdicts"]:
        most = max(set(one["labels"]), key=one["labels"].count)
        assert one["label"] == (most if one["labels"].count(most) > 1 else None)


@pytest.mark.parametrize(
    ("paraphrases", "ways", "texts"),
    [
        ("", 4, {"warm", "cold"}),  # the order of two, and which of them is A
        ("paraphrases: {cold: [curt and distant]}\n", 8, {"warm", "cold", "curt and distant"}),
    ],
)
def test_more_repeats_than_arrangements_go_on_with_the_same(
    chat, base, write_jsonl, tmp_path, paraphrases, ways, texts
):
    rows = [{"prompt": "Hello", "chosen": "Dear!", "rejected": "What.", "split": "test"}]
    write_jsonl(rows, "tone.jsonl")
    domain = tmp_path / "tone.yml"
    domain.write_text(
        "name: tone\nlevels: [warm, cold]\nrecords: tone.jsonl\n" + paraphrases, "utf-8"
    )
    chat.write = lambda body: "A"
    out = run(
        [str(base), "--domain", str(domain), "--max-new-tokens", "4", "--judge"],
        "--judge-model", "tiny", "--judge-base-url", chat.url, "--judge-repeats", ways + 1,
        "--judge-store", tmp_path / "store.jsonl",
    )  # fmt: skip
    assert out.exit_code == 0, out.output
    assert f"1 answer, {ways + 1} judgements" in out.stdout
    assert len(chat.requests) == 3 * ways
    assert {text for prompt in chat.prompts for text in shown(prompt).values()} == texts


def test_the_sample_is_no_larger_than_what_there_is(arguments, chat):
    chat.write = knowing
    arguments[arguments.index("--judge-sample") + 1] = "1000"
    report, _ = judged(arguments)
    assert report["domains"][0]["tally"]["items"] == COUNT


def test_what_is_asked_is_a_text_file(arguments, chat, tmp_path):
    rubric = tmp_path / "rubric.txt"
    rubric.write_text(
        "Q {query} {query}\n<answer>\n{answer}\n</answer>\n{options}\nLetter, please!",
        "utf-8",
    )
    chat.write = knowing
    report, _ = judged(arguments, "--judge-rubric", rubric)
    assert report["domains"][0]["check"]["kappa"] == 1
    assert all(p.startswith("Q What now, number") for p in chat.prompts)
    before = len(chat.requests)
    rubric.write_text(rubric.read_text("utf-8") + " Now!", "utf-8")
    judged(arguments, "--judge-rubric", rubric)
    assert len(chat.requests) == 2 * before  # another question: asked anew


# Nothing twice


def test_a_judgement_is_made_once(arguments, chat):
    chat.write = knowing
    first, _ = judged(arguments)
    assert len(chat.requests) == 12
    again, _ = judged(arguments)
    assert len(chat.requests) == 12 and again["spent"]["calls"] == 0
    assert again["domains"] == first["domains"]
    judged(arguments, "--judge-repeats", 2)
    assert len(chat.requests) == 24
    other, _ = judged([a if a != "tiny" else "other" for a in arguments])
    assert len(chat.requests) == 36 and other["model"] == "other"


def av_eval_here(*arguments):
    av_eval([*arguments])


def test_killed_while_judging_it_goes_on_where_it_was(arguments, chat, tmp_path):
    chat.write, chat.delay = knowing, 0.2
    arguments += ["--judge-concurrency", "1", "--judge-store", str(tmp_path / "deep/store.jsonl")]
    process = start(av_eval_here, tmp_path, *arguments)
    while len(chat.requests) < 5:
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    assert finish(process).code == -9
    done = len(chat.requests) - 1  # the one under way is lost
    chat.clear()
    chat.write = knowing
    report, _ = judged(arguments)
    assert report["domains"][0]["check"]["kappa"] == 1
    assert len(chat.requests) in (12 - done, 12 - done - 1)


def test_a_budget_ends_the_judging_in_time_and_what_is_done_is_kept(arguments, chat):
    chat.write = knowing
    arguments += ["--judge-concurrency", "1", "--judge-max-tokens", "5"]
    error = refused(arguments, "--judge-budget", "2000tokens")
    assert "the budget of 2,000 tokens is spent" in error and "what is done is kept" in error
    done = len(chat.requests)
    assert 0 < done < 12
    judged(arguments)
    assert len(chat.requests) == 12


# Failures


def test_wrong_usage_ends_with_2(arguments):
    assert "--judge-model goes with --judge" in refused(
        [a for a in arguments if a != "--judge"], code=2
    )
    assert "--judge-budget goes with --judge" in refused(
        arguments[: arguments.index("--judge")], "--judge-budget", "1USD", code=2
    )
    without = [a for a in arguments if a not in ("--judge-model", "tiny")]
    assert "name a model with --judge-model" in refused(without, code=2)
    assert "'--judge-repeats'" in refused(arguments, "--judge-repeats", 0, code=2)


def test_what_is_wrong_with_the_judge_is_found_before_the_model_is_read(
    arguments, chat, tmp_path, monkeypatch
):
    gone = [str(tmp_path / "no-model"), *arguments[1:]]
    rubric = tmp_path / "rubric.txt"
    for text, says in (
        ("{query} {answer} {options} {level}", "has the placeholder {level}, which nothing stands"),
        ("{query} {options}", "lacks the placeholder {answer}"),
    ):
        rubric.write_text(text, "utf-8")
        assert says in refused(gone, "--judge-rubric", rubric)
    assert "cannot read" in refused(gone, "--judge-rubric", tmp_path / "none.txt")
    url = gone.index("--judge-base-url")
    provider = [*gone[:url], *gone[url + 2 :]]
    provider[provider.index("tiny")] = "openai/gpt-4o"
    assert "needs a key: set OPENAI_API_KEY" in refused(provider)
    (tmp_path / "store.jsonl").write_text("{}\n", "utf-8")
    assert "line 1 is no evaluation" in refused(gone, "--judge-store", tmp_path / "store.jsonl")
    assert not chat.requests


FAULTS = {
    "nonsense": (Fault(body="<html>Hello</html>"), "answers something that is no chat completion"),
    "cut off": (Fault(cut=20), "the connection to"),
    "stall": (Fault(stall=3), "has not answered in time"),
    "too many requests": (Fault(429, {"Retry-After": "0"}), "allows no more requests now"),
    "no such model": (Fault(404), "is not there"),
    "trouble": (Fault(500), "has trouble (500)"),
}


@pytest.mark.parametrize(("fault", "says"), FAULTS.values(), ids=FAULTS)
def test_an_endpoint_that_fails_is_one_line_and_what_it_said_before_is_kept(
    arguments, chat, fault, says
):
    chat.write = knowing
    fault.times, fault.after = None, 2
    chat.faults = [fault]
    arguments += ["--judge-concurrency", "1", "--json", "report.json"]
    assert says in refused(arguments, "--judge-timeout", 1 if fault.stall else 60)
    assert not Path("report.json").exists()
    chat.faults = []
    before = len(chat.requests)
    judged(arguments)
    assert len(chat.requests) - before == 10


def test_an_empty_answer_of_the_model_is_judged_as_one(arguments, chat):
    chat.write = lambda body: Answer(None)
    _, out = judged(arguments)
    assert "no label" in out
