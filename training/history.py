"""How an aligned model came about, for the metadata of its vector."""

from typing import Any

from accelerate import PartialState
from transformers import TrainerState

from .job import Job
from .lora import LORA, QUANTIZED, Arguments

# Fields of DPOConfig that are worth a line.
REPORTED = (
    "loss_type",
    "loss_weights",
    "beta",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "bf16",
    "fp16",
    "seed",
)
# Of what is logged at a step.
LOGGED = ("step", "loss", "eval_loss", "drift", "eval_drift")


def history(job: Job, state: TrainerState) -> dict[str, Any]:
    """Return what the metadata of a vector says of its training, but for how long that took.

    Args:
        state: what the Trainer knows at the end.
    """
    return {
        "method": f"DPO, {_what(job)}",
        "domain": job.domain.name,
        **({"joint": job.joint} if job.joint else {}),
        "dataset": job.dataset,
        "records": job.count("train"),
        "validation_records": job.count("validation"),
        "pairs": job.pairing,
        **({} if job.at_one_only else {"lambdas": list(job.lambdas)}),
        **({"held": list(job.held), "hold_weight": job.hold} if job.held else {}),
        "processes": PartialState().num_processes,
        "steps": state.global_step,
        "best_step": state.best_global_step,
        "warning": loss_warning(job, state),
        **{key: _plain(getattr(job.arguments, key)) for key in REPORTED},
        **{key: _plain(getattr(job.arguments, key)) for key in _of_factors(job.arguments)},
        "losses": [
            {k: entry[k] for k in LOGGED if k in entry}
            for entry in state.log_history
            if "loss" in entry or "eval_loss" in entry
        ],
    }


def _of_factors(arguments: Arguments) -> list[str]:
    """Return the fields that say how factors were trained; of those that say how the base was loaded, only
    such as were used."""
    if not arguments.use_peft:
        return []
    quantized = arguments.load_in_4bit or arguments.load_in_8bit
    names = [name for name in LORA if quantized or name not in QUANTIZED]
    return names + ["model_init_kwargs"] * bool(arguments.model_init_kwargs)


def _what(job: Job) -> str:
    return f"LoRA of rank {job.arguments.lora_r}" if job.arguments.use_peft else "full fine-tuning"


def loss_warning(job: Job, state: TrainerState) -> str | None:
    """Return a warning where the validation loss says that the untrained model is no worse."""
    losses = {
        entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry
    }
    best = state.best_global_step if job.arguments.load_best_model_at_end else None
    loss = losses.get(best or state.global_step)
    untrained = losses.get(0)
    if job.arguments.loss_type == ["ipo"]:
        untrained = 1 / (2 * job.arguments.beta) ** 2
    if loss is None or untrained is None or loss < untrained:
        return None
    return (
        f"its validation loss, {loss:.4g}, is not below the untrained model's, {untrained:.4g}: "
        "train it again with another --learning_rate"
    )


def _plain(value: Any) -> Any:
    """Return a field's value as JSON has it: of a list of one its element, of an enum its value."""
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return getattr(value, "value", value)
