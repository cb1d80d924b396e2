"""To the Hub: an alignment vector's folder, a checkpoint that was merged with some, or a data set.

Everything is checked before the first byte leaves. Large files go first, which an interrupted push
need not repeat; then one commit makes all visible at once, so nobody ever reads half of a push.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mergekit_av.data.domain import DOMAIN, load_domain
from mergekit_av.data.records import RECORDS, load_records
from mergekit_av.errors import AVError, printable
from mergekit_av.hub.errors import hub_errors
from mergekit_av.hub.source import hub_name, resolve, revision_of
from mergekit_av.hub.trust import refuse_foreign_files, refuse_links
from mergekit_av.io.checkpoint import INDEX, Checkpoint
from mergekit_av.io.fingerprint import non_finite
from mergekit_av.io.json import read_json
from mergekit_av.merge.card import RECIPE, Recipe, merged_card, read_recipe
from mergekit_av.models.load import check_config, layout_of
from mergekit_av.text.card import Kept, with_kept
from mergekit_av.vectors.card import FIGURE, base_on_hub, vector_card
from mergekit_av.vectors.license import license_of
from mergekit_av.vectors.metadata import METADATA, BaseIdentity
from mergekit_av.vectors.vector import AlignmentVector

log = logging.getLogger(__name__)

CARD = "README.md"
# Beside the weights; whatever else lies in a folder stays there.
OF_A_MODEL = (
    "config.json", "generation_config.json", RECIPE, "chat_template.jinja", "chat_template.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip

# One of these holds the vocabulary.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")

# Beside the prompts; what was made on the way to the records stays there.
OF_A_DATA_SET = (RECORDS, DOMAIN, "cleaning.md", "cleaning.json")


@dataclass(frozen=True)
class Upload:
    """What will go to the Hub.

    Attributes:
        kind: what it is.
        name: of the dimension, or of the folder.
        files: path in the repository → the file, or its content.
        card: makes the model card, which keeps what it is given; None where one that is among the
            files, or none, will do.
        kept: of the card in the folder.
        warnings: what the user should know first.
    """

    kind: Literal["alignment vector", "model", "data set"]
    name: str
    files: Mapping[str, Path | bytes]
    card: Callable[[Kept], str] | None = None
    kept: Kept = field(default_factory=Kept)
    warnings: tuple[str, ...] = ()

    def contents(self, page: str = "") -> dict[str, Path | bytes]:
        """All files, sorted by name.

        Args:
            page: the card in the repository: what a user wrote there is kept, where the folder
                says nothing else.
        """
        files = dict(self.files)
        if self.card is not None:
            files[CARD] = self.card(self.kept.or_else(Kept.of(page))).encode()
        return dict(sorted(files.items()))


def prepare(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    base: str | None = None,
    token: str | bool | None = None,
) -> Upload:
    """Check a folder whole, and make what goes to the repository of it.

    The folder stays as it is.

    Args:
        base: of a vector: the Hub id (`id@revision`) that its base has; its weights are compared.

    Raises:
        AVError: something is damaged, incomplete, not finite, or should not be published.
    """
    from huggingface_hub.utils import validate_repo_id

    with hub_errors(f"{repo_id!r} is no name for a repository"):
        validate_repo_id(repo_id)
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise AVError(f"there is no folder {folder}")
    if (folder / METADATA).is_file():
        return _prepare_vector(folder, repo_id, base, token)
    if base is not None:
        raise AVError(f"{folder} is no alignment vector: --base is for those")
    if repo_type_of(folder) == "dataset":
        return _prepare_data_set(folder)
    if (folder / "adapter_config.json").is_file():
        raise AVError(f"{folder} is an adapter: push it with `hf upload {repo_id} {folder}`")
    return _prepare_model(folder, repo_id, token)


def repo_type_of(folder: str | os.PathLike) -> Literal["model", "dataset"]:
    """The type of the repository that a folder goes to: a data set has records."""
    return "dataset" if (Path(folder).expanduser() / RECORDS).is_file() else "model"


def check_access(
    repo_id: str,
    *,
    repo_type: Literal["model", "dataset"] = "model",
    create_pr: bool = False,
    token: str | bool | None = None,
) -> str:
    """See that a token is there and may write to a repository; return the repository's full id.

    Raises:
        AVError: it may not, as far as can be told without writing.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

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
    folder: str | os.PathLike,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    base: str | None = None,
) -> str:
    """Push the folder of an alignment vector, of a merged checkpoint or of a data set, in one commit.

    Arguments are those of huggingface_hub. The repository, and the branch `revision`, are made if
    they are not there. Repeated after an interruption it goes on; repeated after a success it
    changes nothing.

    Args:
        base: see `prepare`.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        AVError: see `prepare` and `check_access`; the repository is public and `private` is asked
            for, or it holds something of another kind; the Hub refuses, or cannot be reached.
    """
    if create_pr and revision is not None:
        raise AVError("a pull request is made against main: pass either it or a branch")
    type = {"repo_type": repo_type_of(folder)}
    repo_id = check_access(repo_id, create_pr=create_pr, token=token, **type)
    upload = prepare(folder, repo_id, base=base, token=token)
    for warning in upload.warnings:
        log.warning("WARNING: %s", printable(warning))

    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    with hub_errors(f"{folder} was not pushed to {repo_id}", token):
        api.create_repo(repo_id, private=private, exist_ok=True, **type)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True, **type)
        there = api.repo_info(repo_id, revision=revision, **type)
        if private and not there.private:
            raise AVError(
                f"{repo_id} is there and public: make it private first, or drop --private"
            )
        paths = [file.rfilename for file in there.siblings or ()]
        _check_kind(repo_id, upload, paths)
        page = (
            api.hf_hub_download(repo_id, CARD, revision=there.sha, **type) if CARD in paths else ""
        )
        contents = upload.contents(_text_of(Path(page)))
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


def _prepare_vector(
    folder: Path, repo_id: str, base: str | None, token: str | bool | None
) -> Upload:
    vector = AlignmentVector.open(folder)
    vector.check()
    vector.check_finite()
    read_json(folder / "config.json")
    metadata, warnings = vector.metadata, []
    if base is not None:
        metadata = replace(metadata, base=_published(vector, base, token))
    elif base_on_hub(metadata.base) is None:
        # What else is in the path is nobody's business.
        metadata = replace(metadata, base=replace(metadata.base, id=Path(metadata.base.id).name))
        warnings.append(
            f"the base, {vector.metadata.base.id}, is a folder of yours, which nobody else has: push "
            "it too, and name its repository with --base"
        )
    kept = _kept(folder, license_of(metadata.base, token=token))
    if not kept.license:
        warnings.append(_unlicensed(metadata.base.id))
    files = {path.name: path for path in _weights(vector.checkpoint)}
    files |= {"config.json": folder / "config.json", METADATA: metadata.to_json().encode()}
    figure = (folder / FIGURE).is_file()
    if figure:
        files[FIGURE] = folder / FIGURE

    def card(kept: Kept) -> str:
        return vector_card(metadata, repo=repo_id, kept=kept, figure=figure)

    refuse_links(_paths(files), folder)
    return Upload("alignment vector", metadata.name, files, card, kept, tuple(warnings))


def _published(vector: AlignmentVector, base: str, token: str | bool | None) -> BaseIdentity:
    """The base of a vector by its Hub id; AVError where something else has that id."""
    name = base.partition("@")[0]
    if hub_name(name) is None:
        raise AVError(f"--base must be the Hub id of the base, not the folder {base}")
    folder = resolve(base, token=token)
    vector.check_base(folder, "name the repository that holds its base")
    return BaseIdentity(name, vector.metadata.base.fingerprint, revision_of(folder))


def _prepare_model(folder: Path, repo_id: str, token: str | bool | None) -> Upload:
    refuse_foreign_files(folder)
    check_config(folder / "config.json", known=False)
    checkpoint = Checkpoint(folder)
    if names := non_finite(checkpoint):
        raise AVError(f"{folder}: {names[0]} has NaN or infinite values: merge with smaller λ")
    recipe = read_recipe(folder)
    _check_tokenizer(folder, recipe)
    _check_complete(checkpoint, recipe)
    files = {path.name: path for path in _weights(checkpoint)}
    files |= {name: folder / name for name in OF_A_MODEL if (folder / name).is_file()}
    if (folder / CARD).is_file():
        files[CARD] = folder / CARD
    refuse_links(_paths(files), folder)
    upload = Upload("model", folder.resolve().name, files)
    if recipe is None:
        return upload
    base, published = recipe.identity(), recipe.published()
    kept = _kept(folder, license_of(base, token=token))
    warnings = () if kept.license else (_unlicensed(base.id),)
    files[RECIPE] = published.written.encode()

    def card(kept: Kept) -> str:
        return merged_card(published, base, repo=repo_id, kept=kept)

    return replace(upload, files=files, card=card, kept=kept, warnings=warnings)


def _check_complete(checkpoint: Checkpoint, recipe: Recipe | None) -> None:
    """Raise AVError for a checkpoint that lacks what its config.json asks for, or a tensor of the base
    that it was merged from."""
    try:
        layout = layout_of(checkpoint)
    except AVError:
        if recipe is not None:
            raise
        return  # of an architecture that transformers does not know, nothing is asked for
    layout.check_whole(str(checkpoint.folder))
    # A recipe of slices may leave out layers of its base.
    if recipe is None or recipe.folder is None or "models" not in recipe.content:
        return
    try:
        base = Checkpoint(recipe.folder)
    except AVError:
        return
    lost = {name for name, info in base.items() if info.dtype.is_floating_point} - set(checkpoint)
    for name in sorted(lost):
        raise AVError(
            f"{checkpoint.folder} has no tensor {name}, which its base, {recipe.base}, has: merge it "
            "again with this mergekit-av"
        )


def _check_tokenizer(folder: Path, recipe: Recipe | None) -> None:
    """Raise AVError for a model without a tokenizer, as a merge leaves it that was interrupted.

    A base that is here and has none either has given none.
    """
    base = recipe.folder if recipe else None
    if _has_tokenizer(folder) or (base is not None and not _has_tokenizer(base)):
        return
    raise AVError(
        f"{folder} has no tokenizer: merge it again, or copy {', '.join(TOKENIZERS[:2])} and the like "
        f"from {recipe.base if recipe else 'its base'}"
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZERS)


def _prepare_data_set(folder: Path) -> Upload:
    domain = load_domain(folder / DOMAIN)
    load_records(domain, folder)
    files = {name: folder / name for name in OF_A_DATA_SET if (folder / name).is_file()}
    files |= {f"prompts/{path.name}": path for path in sorted((folder / "prompts").glob("*.txt"))}
    refuse_links(_paths(files), folder)
    page = _text_of(folder / CARD)
    kept = Kept.of(page)
    warnings = (
        () if kept.license else (f"no license is named: write `license: …` at the top of {CARD}",)
    )

    def card(kept: Kept) -> str:
        return with_kept(page, kept)

    return Upload("data set", domain.name, files, card, kept, warnings)


def _weights(checkpoint: Checkpoint) -> list[Path]:
    index = checkpoint.folder / INDEX
    return [*checkpoint.files, *([index] if index.is_file() else [])]


def _paths(files: Mapping[str, Path | bytes]) -> list[Path]:
    return [path for path in files.values() if isinstance(path, Path)]


def _kept(folder: Path, license: Mapping[str, str]) -> Kept:
    """What the card in a folder says, and the base's license where it names none."""
    return Kept.of(_text_of(folder / CARD)).or_else(Kept(license))


def _text_of(card: Path) -> str:
    return card.read_text("utf-8", errors="replace") if card.is_file() else ""


def _unlicensed(base: str) -> str:
    return (
        f"the license of the base, {base}, is unknown: find it out, and write `license: …` at the "
        f"top of {CARD}"
    )


def _check_kind(repo_id: str, upload: Upload, there: list[str]) -> None:
    """A model must not be replaced by a vector, nor a vector by a model: who uses it means the other."""
    if any(path.endswith(".safetensors") for path in there):
        kind = "alignment vector" if METADATA in there else "model"
        if kind != upload.kind:
            raise AVError(
                f"{repo_id} is the repository of another kind of thing, {kind} and not "
                f"{upload.kind}: choose another name"
            )


def _stale(there: list[str], contents: Mapping[str, Path | bytes]) -> list[str]:
    """Weights of an earlier push that would be read beside the new ones."""
    return [
        path
        for path in there
        if path not in contents
        and "/" not in path
        and (path.endswith(".safetensors") or path == INDEX)
    ]
