"""Prepare a merged checkpoint for the Hub."""

from dataclasses import replace
from pathlib import Path

from mergekit_av.errors import AVError
from mergekit_av.hub.trust import refuse_foreign_files, refuse_links
from mergekit_av.hub.upload import CARD, Upload, local_paths
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import non_finite
from mergekit_av.models.load import check_config, layout_of
from mergekit_av.text.card import Kept
from mergekit_av.vectors.license import license_of
from mergekit_av.vectors.publish import check_kind, kept_card, no_license

from .card import RECIPE, Recipe, merged_card, read_recipe

# Beside the weights; whatever else lies in a folder stays there.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    RECIPE,
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
# One of these holds the vocabulary.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def prepare_model(folder: Path, repo_id: str, *, token: str | bool | None = None) -> Upload:
    """Check a checkpoint's folder whole, and return what goes to its repository.

    Args:
        repo_id: for the card of a merge with alignment vectors. A checkpoint of another kind goes as
            it is, with the card it has.

    Raises:
        AVError: something is damaged, missing or not finite.
    """
    refuse_foreign_files(folder)
    check_config(folder / "config.json", known=False)
    checkpoint = Checkpoint(folder)
    if names := non_finite(checkpoint):
        raise AVError(f"{folder}: {names[0]} has NaN or infinite values: merge with smaller λ")
    recipe = read_recipe(folder)
    _check_tokenizer(folder, recipe)
    _check_complete(checkpoint, recipe)
    files: dict[str, Path | bytes] = {path.name: path for path in checkpoint.paths}
    files |= {name: folder / name for name in MODEL_FILES if (folder / name).is_file()}
    if (folder / CARD).is_file():
        files[CARD] = folder / CARD
    refuse_links(local_paths(files), folder)
    upload = Upload(
        "model",
        folder,
        folder.resolve().name,
        files,
        check_repository=lambda paths: check_kind(repo_id, "model", paths),
    )
    if recipe is None:
        return upload
    base, published = recipe.identity(), recipe.published()
    kept = kept_card(folder, license_of(base, token=token))
    warnings = () if kept.license else (no_license(base.id),)
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
