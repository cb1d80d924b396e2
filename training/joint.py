"""Joint training: one model for one combination of levels (table 5 of the paper).

What sums of vectors are compared with: it must be trained anew for every combination.
"""

from mergekit_av.data.domain import Domain, load_domain
from mergekit_av.data.records import Record
from mergekit_av.errors import AVError


def parse_goal(text: str) -> tuple[dict[str, str], list[Domain]]:
    """Return domain → wanted level of `medical=avoidance,legal=expert`, and the domains.

    Raises:
        AVError: it does not read like that, names a domain twice, or one or a level that is not
            there.
    """
    goal, domains = {}, []
    for part in text.split(","):
        name, sign, level = part.strip().partition("=")
        if not (name and sign and level):
            raise AVError(f"--joint must be like medical=avoidance,legal=expert, not {text!r}")
        domain = load_domain(name)
        if domain.name in goal:
            raise AVError(f"--joint names {domain.name} twice")
        if level not in domain.levels:
            known = ", ".join(domain.levels)
            raise AVError(f"{domain.name} has no level {level!r}: there are {known}")
        goal[domain.name] = level
        domains.append(domain)
    return goal, domains


def joint_domain(goal: dict[str, str]) -> Domain:
    """Return the combination as a dimension of its own; it has a name and no spectrum."""
    name = "+".join(f"{domain}-{level}" for domain, level in goal.items())
    return Domain(name, levels={}, description=f"joint training for {name}")


def wanted_first(records: list[Record], domain: str, level: str) -> list[Record]:
    """Return the records with the wanted level before the others, under ids that tell their domain."""
    return [
        Record(
            f"{domain}/{record.id}",
            record.prompt,
            {level: record.responses[level], **record.responses},
            record.split,
        )
        for record in records
    ]
