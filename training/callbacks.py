"""Callbacks of the Trainer: its progress bar, its last evaluation, its end when it diverges."""

import math

from tqdm.auto import tqdm
from transformers import IntervalStrategy, ProgressCallback, TrainerCallback

from mergekit_av.errors import AVError

LOSSES = ("loss", "eval_loss")


class Progress(ProgressCallback):
    """Show transformers' progress bar with the losses behind it instead of twenty figures a step."""

    def __init__(self) -> None:
        super().__init__()
        self._losses: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.current_step = state.global_step
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                desc="Training",
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                dynamic_ncols=True,
            )

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.set_description("Validating", refresh=False)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and logs:
            self._losses.update({key: f"{logs[key]:.4g}" for key in LOSSES if key in logs})
            self.training_bar.set_postfix(self._losses)

    def close(self) -> None:
        """Leave the terminal in order, however the training ended."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()


class EvaluateLast(TrainerCallback):
    """Evaluate after the last step too, which `eval_steps` need not meet: the best may be there."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps and args.eval_strategy != IntervalStrategy.NO:
            control.should_evaluate = True


class StopDivergence(TrainerCallback):
    """End a training whose loss is NaN or infinite: its weights are lost, whatever follows."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        for key in LOSSES:
            if logs and not math.isfinite(logs.get(key, 0.0)):
                raise AVError(
                    f"the training diverged: {key} is {logs[key]} at step {state.global_step}. "
                    "Start over with --overwrite and a lower --learning_rate"
                )
