"""The report of a cleaning, as Markdown or JSON."""

import importlib.metadata
from dataclasses import asdict
from typing import Any

from mergekit_av.text.markdown import table, text

from .filters import LENGTH, Cleaned, Rules
from .lengths import Lengths, Test

PACKAGES = ("mergekit-av", "lingua-language-detector", "datasketch", "markdown-it-py", "scipy")
STEPS = {
    "incomplete": "a level without a response, a row that cannot be read",
    "cut off": "a text that its model did not end, or that does not end where a sentence does",
    "form": "headings, lists, tables, code in a response",
    "refusal": "a response that refuses at a level that does not ask for it",
    "duplicate": "a query that was there already, but for case, spaces and punctuation",
    "near-duplicate": "a query that shares most of its three-word sequences with one before",
    "language": "a paragraph in another language",
    LENGTH: "records that make the level guessable by length (`--balance-lengths`)",
}


def as_markdown(cleaned: Cleaned, rules: Rules) -> str:
    """Return the counts of the steps, lengths by level, and what these tell."""
    steps = [(step, f"{count:,}", STEPS[step]) for step, count in cleaned.steps.items()]
    lengths = cleaned.balanced or cleaned.lengths
    levels = [
        (
            text(level),
            f"{lengths.mean[level]:.0f}",
            f"{100 * lengths.longest[level]:.0f} %",
            f"{100 * share:.1f} %" + (" (asked for)" if level in rules.refusals else ""),
        )
        for level, share in cleaned.refusing.items()
    ]
    parts = [
        f"{len(cleaned.kept):,} of {cleaned.read:,} records are clean. Each of the others was dropped "
        "by the first of these steps that found something.",
        table(("step", "dropped", "what it looks for"), steps),
        f"Language: {rules.language}. Near-duplicates: Jaccard similarity of at least "
        f"{rules.similarity:g}.",
        table(("level", "words, mean", "longest of its record in", "refusals found"), levels),
    ]
    if cleaned.balanced:
        parts.append(f"Before balancing: {_verdict(cleaned.lengths)}")
    parts.append(f"{'After: ' if cleaned.balanced else ''}{_verdict(lengths)}")
    return "\n\n".join(parts)


def as_json(cleaned: Cleaned, rules: Rules) -> dict[str, Any]:
    """Return all numbers."""
    return {
        "read": cleaned.read,
        "kept": len(cleaned.kept),
        "dropped": cleaned.steps,
        "language": rules.language,
        "similarity": rules.similarity,
        "refusal_levels": sorted(rules.refusals),
        "refusing": cleaned.refusing,
        "lengths": asdict(cleaned.lengths),
        "lengths_balanced": asdict(cleaned.balanced) if cleaned.balanced else None,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _verdict(lengths: Lengths) -> str:
    answer = (
        "**the level can be told from the length**"
        if lengths.tells
        else "the level cannot be told from the length"
    )
    return (
        f"{answer} (Kruskal–Wallis {_test(lengths.kruskal_wallis, 'ε²')}; Friedman, within records, "
        f"{_test(lengths.friedman, 'W')}; Spearman's ρ of length and level, best first, "
        f"{lengths.rho:.2f})."
    )


def _test(test: Test, effect: str) -> str:
    p = f"{test.p:.3f}" if test.p >= 0.001 else f"{test.p:.0e}"
    return f"χ² {test.statistic:.1f}, p {p}, {effect} {test.effect:.3f}"
