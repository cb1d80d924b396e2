"""The summary of a sweep for a terminal."""

from mergekit_av.evaluation.rendering import with_interval

from .calibration import Best
from .result import Sweep

LANGUAGE = {True: "usable", False: "the language has broken down", None: "language unknown"}


def sweep_summary(sweep: Sweep) -> str:
    """Return the usable range, and the best λ of each level, in a few lines."""
    usable = sweep.usable_range
    span = f"λ from {usable[0]:g} to {usable[1]:g}" if usable else "not measured"
    lines = [f"{sweep.vector}: usable range {span}"]
    if sweep.calibration is not None:
        for level, best in sweep.calibration.best.items():
            lines.append(_best(sweep, level, best))
            usable_best = sweep.calibration.best_usable.get(level, best)
            if usable_best.value != best.value:
                lines.append(_best(sweep, level, usable_best))
    for found in sweep.specificities:
        if found.spill:
            spill = with_interval(found.spill)
            lines.append(
                f"  spill into other domains, λ {found.value:+g}: {spill} of its own effect"
            )
    return "\n".join(lines)


def _best(sweep: Sweep, level: str, best: Best) -> str:
    language = LANGUAGE[sweep.usable(best.value)]
    accuracy = with_interval(best.test.accuracy[level])
    dominant = ", dominant" if best.dominant else ""
    return f"  {level}: λ {best.value:+g} ({language}), test accuracy {accuracy}{dominant}"
