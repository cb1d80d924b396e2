"""Alignment vectors for mergekit (arXiv 2410.19206).

pydantic imports this package in every program that uses pydantic (see `pydantic_plugin`), so
nothing heavy is imported until a name is asked for (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_av.data.domain import Domain as Domain
    from mergekit_av.data.domain import load_domain as load_domain
    from mergekit_av.data.records import Record as Record
    from mergekit_av.data.records import load_records as load_records
    from mergekit_av.export.peft import export_lora as export_lora
    from mergekit_av.models.scoring import mean_log_probs as mean_log_probs
    from mergekit_av.runtime.knobs import Knobs as Knobs
    from mergekit_av.vectors.extraction import extract as extract
    from mergekit_av.vectors.vector import AlignmentVector as AlignmentVector

    from .errors import AVError as AVError

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
