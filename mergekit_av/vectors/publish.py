"""Prepare an alignment vector for the Hub."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from mergekit_av.errors import AVError
from mergekit_av.hub.source import hub_name, resolve, revision_of
from mergekit_av.hub.trust import refuse_links
from mergekit_av.hub.upload import CARD, Upload, local_paths
from mergekit_av.io.json import read_json
from mergekit_av.text.card import Kept

from .card import FIGURE, base_on_hub, vector_card
from .license import license_of
from .metadata import METADATA, BaseIdentity
from .stored import StoredVector


def prepare_vector(
    folder: Path, repo_id: str, *, base: str | None = None, token: str | bool | None = None
) -> Upload:
    """Check a vector's folder whole, and return what goes to its repository.

    Args:
        repo_id: for the card.
        base: the Hub id (`id@revision`) that its base has; its weights are compared.

    Raises:
        AVError: the vector is damaged or incomplete, or `base` is another model.
    """
    vector = StoredVector.open(folder)
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
    kept = kept_card(folder, license_of(metadata.base, token=token))
    if not kept.license:
        warnings.append(no_license(metadata.base.id))
    files: dict[str, Path | bytes] = {path.name: path for path in vector.delta.files}
    files |= {"config.json": folder / "config.json", METADATA: metadata.to_json().encode()}
    figure = (folder / FIGURE).is_file()
    if figure:
        files[FIGURE] = folder / FIGURE

    def card(kept: Kept) -> str:
        return vector_card(metadata, repo=repo_id, kept=kept, figure=figure)

    refuse_links(local_paths(files), folder)
    return Upload(
        "alignment vector",
        folder,
        metadata.name,
        files,
        card,
        kept,
        tuple(warnings),
        lambda paths: check_kind(repo_id, "alignment vector", paths),
    )


def _published(vector: StoredVector, base: str, token: str | bool | None) -> BaseIdentity:
    """Return the base of a vector by its Hub id; AVError where something else has that id."""
    name = base.partition("@")[0]
    if hub_name(name) is None:
        raise AVError(f"--base must be the Hub id of the base, not the folder {base}")
    folder = resolve(base, token=token)
    vector.check_base(folder, "name the repository that holds its base")
    return BaseIdentity(name, vector.metadata.base.fingerprint, revision_of(folder))


def kept_card(folder: Path, license: Mapping[str, str]) -> Kept:
    """Return what a new card keeps of the one in a folder, and the base's license where it names none."""
    return Kept.at(folder / CARD).or_else(Kept(license))


def no_license(base: str) -> str:
    """Return the warning that nothing is known of the license of a base."""
    return (
        f"the license of the base, {base}, is unknown: find it out, and write `license: …` at the "
        f"top of {CARD}"
    )


def check_kind(repo_id: str, wanted: str, there: Collection[str]) -> None:
    """Raise AVError for a repository that holds a model where a vector goes, or a vector where a model
    goes: who uses it means the other."""
    if any(path.endswith(".safetensors") for path in there):
        kind = "alignment vector" if METADATA in there else "model"
        if kind != wanted:
            raise AVError(
                f"{repo_id} is the repository of another kind of thing, {kind} and not "
                f"{wanted}: choose another name"
            )
