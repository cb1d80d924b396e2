"""Alignment vectors for mergekit (arXiv 2410.19206).

pydantic imports this package in every program that uses pydantic (see `pydantic_plugin`), so
nothing heavy is imported until a name is asked for (PEP 562).
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "AlignmentVector": "vectors.vector",
    "AVError": "errors",
    "Domain": "data.domain",
    "Knobs": "runtime.knobs",
    "Record": "data.records",
    "export_lora": "export.peft",
    "extract": "vectors.extraction",
    "load_domain": "data.domain",
    "load_records": "data.records",
    "mean_log_probs": "models.scoring",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__():
    return sorted(__all__)
