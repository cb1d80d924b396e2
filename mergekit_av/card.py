"""The model card (README.md) of an alignment vector, made from its metadata alone."""

from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from .vector import Metadata

PAPER = "https://arxiv.org/abs/2410.19206"


def vector_card(metadata: "Metadata") -> str:
    """Markdown with the front matter that the Hub indexes."""
    front = {
        "base_model": metadata.base.id,
        "library_name": "mergekit",
        "tags": ["mergekit", "alignment-vector", "task-vector"],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# Alignment vector: {metadata.name}",
        "This is no model. It is the difference between an aligned model and its base "
        f"([Inference time LLM alignment]({PAPER})); transformers would load it without complaint "
        "and generate garbage. Add it to its base, at any λ:",
        "```yaml\n"
        "merge_method: alignment_vector\n"
        f"base_model: {metadata.base.id}\n"
        "models:\n"
        "  - model: PATH-OR-ID-OF-THIS-VECTOR\n"
        "    parameters: {lambda: 1.0}\n"
        "```",
        _facts(metadata),
    ]
    if metadata.calibration:
        parts.append("## Which λ does what\n\n" + _calibration(metadata.calibration))
    if metadata.training:
        training = dict(metadata.training)
        if warning := training.pop("warning", None):
            parts.insert(2, f"> **Warning**: {warning}.")
        parts.append("## Training\n\n" + _table(training))
    return "\n\n".join(parts) + "\n"


def _facts(metadata: "Metadata") -> str:
    base, statistics = metadata.base, metadata.statistics
    facts = {
        "base": base.id + (f" at {base.revision}" if base.revision else ""),
        "base fingerprint": base.fingerprint,
        "levels, best first": ", ".join(metadata.levels) or "unknown",
        "stored as": metadata.precision["dtype"],
        "difference": metadata.precision["difference"],
        "weights": f"{statistics['weights']:,}, {statistics['unchanged']:.1%} of them unchanged",
        "norm": f"{statistics['norm']:.4g}",
    }
    if statistics["base_norm"]:
        facts["norm"] += f" ({statistics['norm'] / statistics['base_norm']:.2%} of the base's)"
    return "## What it is\n\n" + _table(facts)


def _calibration(calibration: dict) -> str:
    """The λ of each level, and the preference accuracy measured there."""
    lines = ["| level | λ | validation | test (95 %) |", "| --- | --- | --- | --- |"]
    for level, entry in calibration["levels"].items():
        test = entry["test"]
        reached = "" if entry["lambda"] is not None else " (not dominant)"
        lines.append(
            f"| {level}{reached} | {entry['nearest']:g} | {entry['validation']:.2f} | "
            f"{test['value']:.2f} ({test['low']:.2f}–{test['high']:.2f}) |"
        )
    usable = calibration["usable_range"]
    span = f"from {usable[0]:g} to {usable[1]:g}" if usable else "not measured"
    measured = (
        f"Preference accuracy on {calibration['records']['test']} test records of "
        f"{calibration['domain']}; λ chosen on {calibration['records']['validation']} validation "
        f"records. Usable range, in which the model still writes language: {span}."
    )
    return measured + "\n\n" + "\n".join(lines)


def _table(rows: dict) -> str:
    flat = {k: v for k, v in rows.items() if not isinstance(v, dict | list)}
    lines = ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in flat.items())]
    return "\n".join(lines)
