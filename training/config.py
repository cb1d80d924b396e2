"""The configuration of `av-train`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mergekit_av.errors import UsageError
from mergekit_av.extras import require

from .lambdas import check_lambdas
from .settings import PATIENCE, SETTING


@dataclass(frozen=True)
class TrainConfig:
    """Say which alignment vectors to train, of what and how.

        from mergekit_av.training.config import TrainConfig
        from mergekit_av.training.train import train

        config = TrainConfig(domains=["medical"], arguments={"num_train_epochs": 2})
        [vector] = train(config).vectors

    Attributes:
        domains: names or YAML files; one vector is made of each, one after the other.
        joint: instead, `medical=avoidance,legal=expert`: one model for a level in each domain.
        base: a folder or Hub id; None for the default base.
        data: records instead of the only domain's own, see `load_records`.
        out: the vector's folder; `avs/DOMAIN` without it.
        pairs: which levels to compare, see `preference_pairs`; None for the setting's own choice.
        setting: one of SETTINGS.
        lambdas: at which λ to train; None for the setting's own choice.
        hold: domains in which the vectors shall change nothing, see drift.py.
        hold_weight: of these in the loss; None for HOLD.
        max_records: train on the first so many of each domain only.
        dtype: of the vectors.
        patience: evaluations without a lower validation loss after which a training stops.
        config: a YAML file of DPOConfig's fields.
        arguments: DPOConfig's fields, which win over the file's: a mapping, or options as typed.
        keep_aligned: keep the aligned models in `runs/DOMAIN/aligned`.
        resume: continue interrupted runs; keep vectors that are done.
        overwrite: replace vectors that are there, and without `resume` runs as well.
        push_to_hub: the repository to push the only vector to.
        private: make that repository private.

    Raises:
        UsageError: options that do not go together.
        AVError: `lambdas` are none to train at; TRL is not installed.
    """

    domains: Sequence[str | Path] = ()
    joint: str | None = None
    base: str | None = None
    data: str | None = None
    out: Path | None = None
    pairs: Literal["adjacent", "all"] | None = None
    setting: str = SETTING
    lambdas: tuple[float, ...] | None = None
    hold: Sequence[str | Path] = ()
    hold_weight: float | None = None
    max_records: int | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    patience: int = PATIENCE
    config: Path | None = None
    arguments: Sequence[str] | Mapping[str, Any] = field(default_factory=dict)
    keep_aligned: bool = False
    resume: bool = False
    overwrite: bool = False
    push_to_hub: str | None = None
    private: bool = False

    def __post_init__(self):
        require("train", "trl", to="train a vector")
        several = len(self.domains) > 1
        if self.lambdas is not None:
            check_lambdas(self.lambdas)
        if bool(self.domains) == bool(self.joint):
            raise UsageError("say what to train on: --domain, or --joint")
        if ((self.joint or several) and self.data) or (several and self.out):
            raise UsageError("--data and --out go with exactly one --domain")
        if self.push_to_hub and several:
            raise UsageError("--push-to-hub goes with exactly one --domain")
        if self.private and not self.push_to_hub:
            raise UsageError("--private goes with --push-to-hub")
        if self.hold_weight is not None and not self.hold:
            raise UsageError("--hold-weight goes with --hold")
        if self.hold_weight is not None and not math.isfinite(self.hold_weight):
            raise UsageError(f"--hold-weight must be a number, not {self.hold_weight}")
        if self.joint and self.hold:
            raise UsageError("--hold goes with --domain: a joint model is summed with nothing")
        if self.joint and self.lambdas not in (None, (1.0,)):
            raise UsageError("--lambdas goes with --domain: a joint model has no other side")

    @property
    def selects_lambdas(self) -> bool:
        """Tell whether the λ are chosen by what the base prefers, see `select_lambdas`."""
        return self.setting != "paper" and not (self.lambdas or self.joint)
