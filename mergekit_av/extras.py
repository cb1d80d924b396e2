"""Libraries that only a part of the package needs, installed as extras of pyproject.toml."""

import importlib.util

from mergekit_av.errors import AVError


def require(extra: str, *modules: str, to: str) -> None:
    """Refuse what cannot work without the libraries of an extra.

    Args:
        modules: what is imported of them.
        to: what they are needed for, as an infinitive.

    Raises:
        AVError: one is not installed; it names the extra that brings it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise AVError(f"to {to}, {module} is needed: pip install 'mergekit-av[{extra}]'")
