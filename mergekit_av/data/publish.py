"""Prepare a data set for the Hub."""

from pathlib import Path

from mergekit_av.hub.trust import refuse_links
from mergekit_av.hub.upload import CARD, Upload, local_paths, read_text
from mergekit_av.text.card import Kept, with_kept

from .domain import DOMAIN, load_domain
from .records import RECORDS, load_records

# Beside the prompts; what was made on the way to the records stays there.
DATA_SET_FILES = (RECORDS, DOMAIN, "cleaning.md", "cleaning.json")


def prepare_data_set(folder: Path) -> Upload:
    """Check a data set's folder whole, and return what goes to its repository.

    Raises:
        AVError: the domain or a record cannot be read.
    """
    domain = load_domain(folder / DOMAIN)
    load_records(domain, folder)
    files = {name: folder / name for name in DATA_SET_FILES if (folder / name).is_file()}
    files |= {f"prompts/{path.name}": path for path in sorted((folder / "prompts").glob("*.txt"))}
    refuse_links(local_paths(files), folder)
    page = read_text(folder / CARD)
    kept = Kept.of(page)
    warnings = (
        () if kept.license else (f"no license is named: write `license: …` at the top of {CARD}",)
    )

    def card(kept: Kept) -> str:
        return with_kept(page, kept)

    return Upload("data set", folder, domain.name, files, card, kept, warnings)
