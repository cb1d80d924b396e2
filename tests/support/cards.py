"""Model cards as the Hub and their readers see them."""

import re

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK


def front_matter(card: bytes | str) -> dict:
    """As the Hub reads it."""
    text = card.decode() if isinstance(card, bytes) else card
    return yaml.safe_load(REGEX_YAML_BLOCK.search(text)[2])


def recipe_of(card: bytes) -> dict:
    """The recipe that a reader of a card would copy."""
    return yaml.safe_load(re.search(r"```yaml\n(.*?)\n```", card.decode(), re.DOTALL)[1])
