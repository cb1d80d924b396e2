"""A Hub that fails: what ends in a retry, what in one line, and that nobody sees half of a push."""

import shutil
from pathlib import Path

import pytest
from hub_client import TOKEN
from hub_server import Fault

from mergekit_av.io.checkpoint import SINGLE

BOTH_WAYS = pytest.mark.parametrize("client", ["xet", "lfs"], indirect=True)
BY_LFS = pytest.mark.parametrize("client", ["lfs"], indirect=True)
AGAIN = "run the same command again: what has arrived is kept"


@pytest.fixture
def av(vectors, tmp_path) -> Path:
    return shutil.copytree(vectors["legal"], tmp_path / "legal")


def push(client, repo: str = "me/legal-av"):
    return client.run("av-push", "legal", repo)


def seen(hub, repo: str = "me/legal-av") -> set[str]:
    """The files of a push that a reader sees."""
    return set(hub.repos[repo].files()) - {".gitattributes"} if repo in hub.repos else set()


# --- pushing -----------------------------------------------------------------------------------

RETRIED = {
    "429 with Retry-After": Fault("preupload", 429, {"Retry-After": "1"}),
    "500": Fault("preupload", 500),
    "503, twice": Fault("preupload", 503, times=2),
    "a connection cut in the middle of a body": Fault("preupload", cut_request=100),
    "an answer cut in the middle": Fault("preupload", cut_response=5),
    "a slow answer": Fault("preupload", slow=0.5),
}
OF_LFS = {
    "503 for the batch": Fault("objects/batch", 503),
    "500 for the file": Fault("PUT /lfs", 500),
    "a file cut in the middle": Fault("PUT /lfs", cut_request=30_000),
}
OF_XET = {
    "500 for the file": Fault("POST /cas/v1/xorbs", 500),
    "a file cut in the middle": Fault("POST /cas/v1/xorbs", cut_request=30_000),
    "503 for the shard": Fault("POST /cas/v1/shards", 503),
}


@pytest.mark.parametrize(
    ("client", "what"),
    [
        *(("xet", what) for what in RETRIED | OF_XET),
        *(("lfs", what) for what in OF_LFS),
    ],
    indirect=["client"],
)
def test_what_passes_is_retried(hub, client, av, what):
    faults = {**RETRIED, **(OF_XET if client.transport == "xet" else OF_LFS)}
    fault = faults[what]
    hub.faults = [Fault(**vars(fault))]
    ended = push(client)
    assert ended.code == 0, ended.err
    assert hub.faults[0].times == 0
    assert hub.repos["me/legal-av"].files()[SINGLE] == (av / SINGLE).read_bytes()


TOLD = {
    "401": (Fault("commit/", 401), "the token is not accepted"),
    "403": (
        Fault("commit/", 403, {"X-Error-Message": "read only"}),
        "the token may not do this (read only): take one with write access",
    ),
    "403 for the account": (Fault("repos/create", 403), "the token may not do this"),
    "404": (Fault("commit/", 404, {"X-Error-Code": "RepoNotFound"}), "no such repository"),
    "409": (Fault("commit/", 409), "somebody else changed it at the same time"),
    "412": (Fault("commit/", 412), "somebody else changed it at the same time"),
    "429": (
        Fault("repos/create", 429, {"Retry-After": "7"}),
        f"too many requests: wait 7 seconds, then {AGAIN}",
    ),
    "500": (Fault("commit/", 500), f"the Hub has trouble (500): wait a little, then {AGAIN}"),
    "503": (Fault("commit/", 503), f"the Hub has trouble (503): wait a little, then {AGAIN}"),
    "cut in the middle of the body": (Fault("commit/", cut_request=500), AGAIN),
    "an answer that is no JSON": (
        Fault("validate-yaml", 200, message="<html>Log in to the network</html>"),
        "the answer is not the Hub's: check HF_ENDPOINT",
    ),
}


@pytest.mark.parametrize("what", TOLD)
def test_what_does_not_pass_is_told_in_one_line(hub, client, av, what):
    fault, message = TOLD[what]
    hub.faults = [Fault(**vars(fault))]
    ended = push(client)
    assert ended.code == 1 and ended.out == ""
    assert ended.error.startswith("Error: legal was not pushed to me/legal-av: ")
    assert message in ended.error
    assert not seen(hub)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, client, av):
    hub.faults = [Fault("commit/", cut_response=0)]
    assert AGAIN in push(client).error
    repo = hub.repos["me/legal-av"]
    oid = repo.refs["main"]
    assert push(client).out == f"{hub.url}/me/legal-av/commit/{oid}\n"
    assert repo.refs["main"] == oid


@BOTH_WAYS
def test_a_push_killed_at_any_request_is_completed_by_the_next(hub, client, av):
    """Killed in the middle of each request's body: the first of a push, the second, …

    By LFS, at those that are not asked by Xet.
    """
    assert push(client, "me/all").code == 0
    asked, whole = [request.line for request in hub.requests], seen(hub, "me/all")
    numbers = range(1, len(asked))
    if client.transport == "lfs":
        numbers = [number for number in numbers if "lfs/" in asked[number - 1]]
        assert len(numbers) == 2
    killed = 0
    for number in numbers:
        repo = f"me/av-{number}"
        (av / "config.json").write_text((av / "config.json").read_text("utf-8") + " ", "utf-8")
        running = client.start("av-push", "legal", repo)
        hub.faults = [Fault("", cut_request=2**number, after=number - 1, then=running.kill)]
        killed += running.finish().code == -9
        hub.faults = []
        assert seen(hub, repo) in (set(), whole)
        ended = push(client, repo)
        assert ended.code == 0, ended.err
        assert seen(hub, repo) == whole
        assert hub.repos[repo].files()[SINGLE] == (av / SINGLE).read_bytes()
    assert killed >= len(numbers) - 2


@BY_LFS
def test_what_has_arrived_is_not_sent_twice(hub, client, av):
    hub.faults = [Fault("commit/", 503)]
    assert push(client).code == 1
    hub.requests.clear()
    assert push(client).code == 0
    assert not hub.asked("PUT /lfs")


def test_somebody_elses_commit_is_not_overwritten_in_between(hub, client, av):
    assert push(client).code == 0
    repo = hub.repos["me/legal-av"]
    (av / "README.md").write_text("---\nlicense: mit\n---\n", "utf-8")

    def commit() -> None:
        repo.commit({**repo.commits[repo.refs["main"]]}, "main")

    hub.faults = [Fault("preupload", cut_request=0, then=commit)]
    assert "somebody else changed it at the same time" in push(client).error
    assert push(client).code == 0


# --- reading -----------------------------------------------------------------------------------


def check(client):
    shutil.rmtree(client.home, ignore_errors=True)
    return client.run("av-check", "me/legal-av")


@BY_LFS
def test_a_download_goes_on_where_it_was_cut(hub, client, av):
    hub.add_repo("me/legal-av", {file.name: file.read_bytes() for file in av.iterdir()})
    hub.faults = [
        Fault("GET /network", cut_response=1000),
        Fault("GET /network", slow=6),  # longer than the client waits
        Fault("HEAD .*/config.json", 503),
        Fault("GET .*/alignment_vector.json", 429, {"Retry-After": "1"}),
    ]
    ended = check(client)
    assert ended.code == 0, ended.err
    assert all(fault.times == 0 for fault in hub.faults)


def test_a_download_by_xet_survives_a_cut(hub, client, av):
    assert push(client).code == 0
    hub.faults = [
        Fault("GET /cas/xorbs", cut_response=1000),
        Fault("GET /cas/v1/reconstructions", 500),
    ]
    ended = check(client)
    assert ended.code == 0, ended.err
    assert all(fault.times == 0 for fault in hub.faults)


@pytest.mark.parametrize(
    ("client", "fault", "message"),
    [
        ("lfs", Fault("GET /network", 500), "the Hub has trouble (500)"),
        ("lfs", Fault("GET /network", 403), "the token may not do this"),
        ("lfs", Fault("GET /network", 404), "the Hub refuses (404)"),
        ("xet", Fault("revision/main", 503), "the Hub has trouble (503)"),
        ("xet", Fault("revision/main", 401), "the token is not accepted"),
        ("xet", Fault("revision/main", cut_request=0), "the connection failed"),
    ],
    indirect=["client"],
)
def test_a_download_that_fails_is_told_in_one_line(hub, client, av, fault, message):
    hub.add_repo("me/legal-av", {file.name: file.read_bytes() for file in av.iterdir()})
    hub.faults = [Fault(**vars(fault))]
    ended = check(client)
    assert ended.code == 1 and ended.out == ""
    assert "me/legal-av is no folder here, and the Hub has not given it: " in ended.error
    assert message in ended.error


# --- tokens ------------------------------------------------------------------------------------


@BOTH_WAYS
def test_a_token_goes_to_the_hub_alone_and_is_written_nowhere(hub, client, av, tmp_path):
    hub.faults = [Fault("commit/", 403, {"X-Error-Message": f"no rights for {TOKEN}"})]
    ended = push(client)
    assert ended.code == 1 and "no rights for ***" in ended.error
    assert push(client).code == 0
    assert client.run("av-check", "me/legal-av").code == 0
    assert not [r for r in hub.requests if TOKEN in r.line]
    elsewhere = [r for r in hub.requests if r.host.startswith("localhost")]
    assert client.transport == "xet" or elsewhere
    assert all(request.token is None for request in elsewhere)
    assert any(request.token == TOKEN for request in hub.requests)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    files += [path for path in client.home.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path
