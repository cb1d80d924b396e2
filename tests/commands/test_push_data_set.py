"""Data sets on the Hub, over real HTTP: pushed by av-synth or av-push, read by their id."""

import json

import pytest
import yaml
from hub_server import User
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from synthesizing import TINY, lines, novelist, write_domain

FILES = {"records.jsonl", "README.md", "domain.yml", "cleaning.md", "cleaning.json"} | {
    f"prompts/{name}.txt" for name in ("roots", "expand", "query", "response")
}
# Whoever has nothing but the id.
READ = """
import json, sys
from mergekit_av.data.domain import load_domain
from mergekit_av.data.records import load_records
records = load_records(load_domain("hosting.yml"), "me/hosting")
print(json.dumps({r.id: [r.query, r.responses] for r in records}))
"""


@pytest.fixture
def data(hub, client, chat, tmp_path):
    """What av-synth has made and pushed, as `me/hosting`."""
    chat.write = novelist
    write_domain(tmp_path)
    ended = client.run(*options(chat), "--push-to-hub", "me/hosting")
    assert ended.code == 0, ended.err
    repo = hub.repos["datasets/me/hosting"]
    assert ended.out.splitlines()[-1] == f"{hub.url}/datasets/me/hosting/commit/{repo.refs['main']}"
    return tmp_path / "data"


def options(chat) -> list[str]:
    run = ["av-synth", "run", "--domain", "hosting.yml", "--count", "4", "--out", "data"]
    return [*run, "--base-url", chat.url, *TINY]


def files(hub) -> dict[str, bytes]:
    return hub.repos["datasets/me/hosting"].files()


def test_a_data_set_goes_to_the_hub_and_comes_back_by_its_id(hub, client, data):
    assert files(hub).keys() == FILES | {".gitattributes"}
    assert files(hub)["records.jsonl"] == (data / "records.jsonl").read_bytes()
    front = yaml.safe_load(REGEX_YAML_BLOCK.search(files(hub)["README.md"].decode())[2])
    assert front["configs"] == [{"config_name": "default", "data_files": "records.jsonl"}]
    assert front["size_categories"] == ["n<1K"] and "hosting" in front["tags"]

    ended = client.run("python", READ, HF_TOKEN=None)
    assert ended.code == 0, ended.err
    rows = {row["id"]: [row["query"], row["responses"]] for row in lines(data / "records.jsonl")}
    assert json.loads(ended.out.splitlines()[-1]) == rows and len(rows) == 4


def test_pushed_again_it_keeps_what_a_user_wrote(hub, client, data):
    card = data / "README.md"
    text = card.read_text("utf-8").replace("---\nlanguage", "---\nlicense: cc-by-4.0\nlanguage", 1)
    begin = text.index("<!-- own words")
    end = text.index("\n", begin)
    card.write_text(f"{text[:end]}\n\nMade for fun.\n{text[end:]}", "utf-8")
    ended = client.run("av-push", "data", "me/hosting")
    assert ended.code == 0, ended.err
    assert "license" not in ended.err
    page = files(hub)["README.md"].decode()
    assert "Made for fun." in page and "license: cc-by-4.0" in page
    # And so does the page, where the folder says nothing.
    card.write_text(
        text[: text.index("---\n", 4)].replace("license: cc-by-4.0\n", "")
        + text[text.index("---\n", 4) :],
        "utf-8",
    )
    assert client.run("av-push", "data", "me/hosting").code == 0
    assert files(hub)["README.md"].decode().count("Made for fun.") == 1


def test_a_dry_run_lists_and_a_damaged_data_set_is_refused(hub, client, data):
    before = files(hub)
    ended = client.run("av-push", "data", "me/hosting", "--dry-run")
    assert {line.split()[1] for line in ended.out.splitlines()} == FILES
    assert "no license is named" in ended.err
    rows = (data / "records.jsonl").read_text("utf-8").replace('"warm"', '"hot"', 1)
    (data / "records.jsonl").write_text(rows, "utf-8")
    ended = client.run("av-push", "data", "me/hosting")
    assert ended.code == 1 and "line 1: `responses` has the level 'hot'" in ended.error
    assert files(hub) == before


def test_who_may_not_push_is_told_before_anything_is_asked(hub, client, chat, tmp_path):
    write_domain(tmp_path)
    hub.users["hf_other"] = User("other", role="read")
    for token, message in ((None, "no token"), ("hf_other", "the token is for reading")):
        ended = client.run(*options(chat), "--push-to-hub", "me/hosting", HF_TOKEN=token)
        assert ended.code == 1 and message in ended.error
    assert not chat.requests


def test_personas_come_from_a_data_set_on_the_hub(hub, client, tmp_path):
    write_domain(tmp_path)
    rows = "".join(json.dumps({"persona": f"Guest {i}"}) + "\n" for i in range(30))
    hub.add_repo("datasets/proj-persona/PersonaHub", {
        "README.md": b"---\nconfigs:\n- config_name: persona\n  data_files: persona.jsonl\n---\n",
        "persona.jsonl": rows.encode(),
    })  # fmt: skip
    hub.add_repo("datasets/me/odd", {"rows.jsonl": b'{"who": "me"}\n'})
    begin = ("av-synth", "personas", "--domain", "hosting.yml", "--out", "data")
    ended = client.run(*begin, "--from", "personahub", "--sample", "9")
    assert ended.code == 0, ended.err
    entries = lines(tmp_path / "data" / "sampled.jsonl")
    assert len(entries) == 9 and {entry["source"] for entry in entries} == {"personahub"}
    ended = client.run(*begin, "--from", "me/odd", "--restart")
    assert ended.code == 1 and "me/odd has no column `persona`; it has who" in ended.error
