"""Upload files to the Hub in one commit.

Large files go first, which an interrupted push need not repeat; then one commit makes all visible at
once, so nobody ever reads half of a push.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from mergekit_av.errors import AVError, printable
from mergekit_av.text.card import Kept

from .errors import hub_errors

log = logging.getLogger(__name__)

CARD = "README.md"
RepoType = Literal["model", "dataset"]


@dataclass(frozen=True)
class Upload:
    """The files of one push, checked, and what its commit and card say.

    Attributes:
        kind: what it is.
        folder: where it is.
        name: of the dimension, or of the folder.
        files: path in the repository → the file, or its content.
        card: makes the model card, which keeps what it is given; None where one that is among the
            files, or none, will do.
        kept: of the card in the folder.
        warnings: what the user should know first.
        check_repository: called with the paths that the repository holds; raises AVError where this
            upload does not belong there.
    """

    kind: Literal["alignment vector", "model", "data set"]
    folder: Path
    name: str
    files: Mapping[str, Path | bytes]
    card: Callable[[Kept], str] | None = None
    kept: Kept = field(default_factory=Kept)
    warnings: tuple[str, ...] = ()
    check_repository: Callable[[Collection[str]], None] = lambda paths: None

    def contents(self, page: str = "") -> dict[str, Path | bytes]:
        """Return all files, the card among them, sorted by name.

        Args:
            page: the card in the repository: what a user wrote there is kept, where the folder
                says nothing else.
        """
        files = dict(self.files)
        if self.card is not None:
            files[CARD] = self.card(self.kept.or_else(Kept.of(page))).encode()
        return dict(sorted(files.items()))


def check_access(
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    create_pr: bool = False,
    token: str | bool | None = None,
) -> str:
    """Check that a token is there and may write to a repository; return the repository's full id.

    Raises:
        AVError: it may not, as far as can be told without writing.
    """
    what = f"cannot push to {repo_id}"
    with hub_errors(what, token):
        validate_repo_id(repo_id)
        if not isinstance(token, str) and (token is False or get_token() is None):
            raise AVError(f"{what}: no token: run `hf auth login`, or set HF_TOKEN")
        api = HfApi(token=token)
        user = api.whoami()
        if "/" not in repo_id:
            repo_id = f"{user['name']}/{repo_id}"
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise AVError(f"{what}: the token is for reading: take one for writing")
        if create_pr:
            return repo_id
        try:
            api.auth_check(repo_id, repo_type=repo_type, write=True)
        except RepositoryNotFoundError:
            namespace = repo_id.split("/")[0]
            if namespace not in {user["name"], *(org["name"] for org in user.get("orgs", ()))}:
                raise AVError(
                    f"{what}: there is no such repository, and {user['name']} cannot make one in "
                    f"{namespace}"
                ) from None
    return repo_id


def push(
    prepare: Callable[[str], Upload],
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Push files in one commit, after everything is checked.

    Arguments are those of huggingface_hub. The repository, and the branch `revision`, are made if
    they are not there. Repeated after an interruption it goes on; repeated after a success it
    changes nothing.

    Args:
        prepare: called with the repository's full id; checks the files, and returns them.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        AVError: see `check_access`; the repository is public and `private` is asked for, or it holds
            something of another kind; the Hub refuses, or cannot be reached.
    """
    if create_pr and revision is not None:
        raise AVError("a pull request is made against main: pass either it or a branch")
    type = {"repo_type": repo_type}
    repo_id = check_access(repo_id, create_pr=create_pr, token=token, **type)
    upload = prepare(repo_id)
    for warning in upload.warnings:
        log.warning("WARNING: %s", printable(warning))

    api = HfApi(token=token)
    with hub_errors(f"{upload.folder} was not pushed to {repo_id}", token):
        api.create_repo(repo_id, private=private, exist_ok=True, **type)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True, **type)
        there = api.repo_info(repo_id, revision=revision, **type)
        if private and not there.private:
            raise AVError(
                f"{repo_id} is there and public: make it private first, or drop --private"
            )
        paths = [file.rfilename for file in there.siblings or ()]
        upload.check_repository(paths)
        page = (
            api.hf_hub_download(repo_id, CARD, revision=there.sha, **type) if CARD in paths else ""
        )
        contents = upload.contents(read_text(Path(page)))
        where = {"repo_id": repo_id, "revision": revision, "create_pr": create_pr, **type}
        additions = [CommitOperationAdd(path, content) for path, content in contents.items()]
        # "" for its .gitignore: what a repository says of other files would leave out ours in silence.
        api.preupload_lfs_files(
            additions=additions, gitignore_content="", free_memory=False, **where
        )
        commit = api.create_commit(
            operations=[*additions, *map(CommitOperationDelete, _stale(paths, contents))],
            commit_message=commit_message or f"Upload {upload.kind} {upload.name}",
            parent_commit=there.sha,
            **where,
        )
    return commit.pr_url or commit.commit_url


def local_paths(files: Mapping[str, Path | bytes]) -> list[Path]:
    """Return the files among an upload's contents that lie on disk."""
    return [path for path in files.values() if isinstance(path, Path)]


def read_text(card: Path) -> str:
    """Return a card's text, or nothing where there is no card."""
    return card.read_text("utf-8", errors="replace") if card.is_file() else ""


def _stale(there: list[str], contents: Mapping[str, Path | bytes]) -> list[str]:
    """Weights of an earlier push that would be read beside the new ones."""
    return [
        path
        for path in there
        if path not in contents
        and "/" not in path
        and (path.endswith(".safetensors") or path == SAFETENSORS_INDEX_FILE)
    ]
