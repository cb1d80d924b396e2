"""Defaults of av-train that are not TRL's: what all settings share, then the settings.

The paper's setting is IPO loss, β 0.1, full fine-tuning, batch 4, one epoch, the validation loss
watched. The paper does not say its learning rate, schedule or precision: docs/training.md says how
they were found. The others train each level at a λ of its own, in factors of low rank or in all
weights; docs/usable-range.md compares them.
"""

from typing import Literal

COMMON = {
    "per_device_eval_batch_size": 4,
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "max_length": 1024,
    # Reference log-probabilities first, so that only one model is in memory while training.
    "precompute_ref_log_probs": True,
    "gradient_checkpointing": False,
    "save_strategy": "steps",
    "save_steps": 0.25,
    "save_total_limit": 2,
    "eval_steps": 0.25,
    "metric_for_best_model": "eval_loss",
    "restore_callback_states_from_checkpoint": True,
    "logging_steps": 1.0,
    # A loss that is NaN is seen at once, and not replaced by the mean of those before it.
    "logging_nan_inf_filter": False,
    "report_to": ["none"],
}
SETTINGS = {
    "lora": {
        "use_peft": True,
        "lora_r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        # What lies below is computed without gradients. Half does as well as all: docs/low-rank.md.
        "lora_layers": 0.5,
        "loss_type": ["ipo", "sft"],
        "loss_weights": [0.5, 1.0],
        "beta": 0.25,
        "per_device_train_batch_size": 2,
        "learning_rate": 3e-3,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
    },
    "spectrum": {
        "loss_type": ["ipo", "sft"],
        "loss_weights": [0.5, 1.0],
        "beta": 0.25,
        "per_device_train_batch_size": 2,
        "learning_rate": 3e-4,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
    },
    "paper": {
        "loss_type": ["ipo"],
        "beta": 0.1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-4,
        "eval_strategy": "steps",
        "load_best_model_at_end": True,
    },
}
SETTING = "lora"
# Which levels are compared, see pairs.py. With all, a batch of two pairs of three levels is one record.
PAIRING: dict[str, Literal["adjacent", "all"]] = {
    "lora": "all",
    "spectrum": "adjacent",
    "paper": "adjacent",
}
# Evaluations without a lower validation loss after which training stops.
PATIENCE = 2
# The weight of the divergence from the base on other domains' texts, see drift.py.
HOLD = 2.0
