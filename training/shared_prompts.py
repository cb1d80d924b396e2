"""Prompts computed once a batch, and not once for every response.

TRL computes each prompt with its chosen response and again with its rejected one, and where a batch
has two pairs of a record, four times. Here the keys and values of a prompt are computed once, and
after them each distinct response once. TRL's losses and metrics get the log-probabilities of its own
way, with the same gradients: they are summed in another order, so rounding differs, nothing else.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from trl import DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

log = logging.getLogger(__name__)

IGNORED = -100  # the label of what is not predicted
# What TRL gives its forward. Whatever else there is (pictures, positions, a prefix of PEFT's) belongs to
# whole rows.
CALL = {"input_ids", "attention_mask", "labels", "use_cache", "fused_lm_head"}
# Layers whose past is the keys and values of single tokens. Others (state spaces, linear attention,
# indexers) may write their states in place or detach them, which no comparison of numbers shows.
PLAIN_LAYERS = {DynamicLayer, DynamicSlidingWindowLayer}
# How far the log-probabilities of the first batch may be from TRL's, in nats: the mean of a token.
# Autocast is off for this comparison: with bfloat16 products SmolLM2-135M-Instruct's are .035 to .039
# apart on medical records (in float32 less than 1e-5), and no more than .1 where the prompt has lost
# its first token. Where the weights themselves have 16 bits, the bound lies between these two.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 6e-2, torch.bfloat16: 6e-2}

Tokens = tuple[int, ...]
# Prompt → response → the rows that have both.
Groups = dict[Tokens, dict[Tokens, list[int]]]


class SharedPromptsTrainer(DPOTrainer):
    """Train with TRL, each prompt and each response to it computed once a batch.

    So are the reference log-probabilities, but for those of a second model (`ref_model`). Where
    prompts cannot be shared they are computed as TRL does it, and the log says why; rows that are there
    twice are still computed once.
    """

    _decided = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._share_prompts()

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any):
        self._share_prompts()  # within TRL's __init__, which has changed the model's forward by now
        return super()._precompute_ref_logps(*args, **kwargs)

    def _share_prompts(self) -> None:
        if self._decided:
            return
        self._decided = True
        each, reason = rows_matter(self), why_not(self)
        if each is None:
            share_prompts(_without_adapters(self.model), whole_rows=reason is not None)
        if (each or reason) and self.accelerator.is_main_process:
            log.info("prompts are computed once a response: %s", each or reason)


def rows_matter(trainer: DPOTrainer) -> str | None:
    """Return why each row has to be computed, even one that is there twice; None where it has not."""
    model = _without_adapters(trainer.model)
    router = getattr(model.config.get_text_config(), "output_router_logits", False)
    reasons = {
        "the auxiliary loss of the experts counts each token of each row": trainer.aux_loss_enabled
        or router,
        "dropout draws anew for each": _drops(model),
        "torch.compile wants batches of one shape": trainer.args.torch_compile,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def why_not(trainer: DPOTrainer) -> str | None:
    """Return why a trainer's prompts cannot be shared, though rows can; None where they can."""
    args, model = trainer.args, _without_adapters(trainer.model)
    config = model.config
    several = trainer.accelerator.parallelism_config is not None
    reasons = {
        "gradient checkpointing keeps no keys and values": args.gradient_checkpointing,
        "weights or tokens are spread over processes": several
        or trainer.is_fsdp_enabled
        or trainer.is_deepspeed_enabled,
        "only eager and sdpa attention were tried": config._attn_implementation
        not in ("eager", "sdpa"),
        "rotary frequencies depend on the length of a row": _stretches(config.get_text_config()),
        "the model's cache has more in it than keys and values": not _has_plain_cache(config),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def share_prompts(model: PreTrainedModel, whole_rows: bool = False) -> None:
    """Let a model whose forward TRL has changed (`add_fused_lm_head`) compute each prompt once.

    The first batch is computed in both ways first, without gradients. Where the two differ, the log
    warns, and TRL's way is taken from then on.

    Args:
        model: without PEFT's wrapper.
        whole_rows: compute each distinct row once, and no prompt alone.
    """
    model.forward = _SharingForward(model, whole_rows)


class _SharingForward:
    """Call TRL's forward on each response alone, after the keys and values of its prompt."""

    def __init__(self, model: PreTrainedModel, whole_rows: bool):
        self._model = model
        self._fused = model.forward
        self._agrees: bool | None = False if whole_rows else None
        functools.update_wrapper(self, self._fused)  # `generate` looks at the signature

    def __call__(self, *args: Any, **kwargs: Any):
        given = {name: value for name, value in kwargs.items() if value is not None}
        if args or not given.get("fused_lm_head") or given.keys() != CALL:
            return self._fused(*args, **kwargs)
        if self._agrees is False:
            return self._distinct_rows(given)
        groups = _groups(given["input_ids"], given["labels"], given["attention_mask"])
        if not 0 < len(groups) < len(given["input_ids"]):
            return self._fused(**kwargs)
        if self._agrees is None:
            self._agrees = self._check(groups, kwargs)
            return self(**kwargs)
        return self._compute(groups, given["labels"])

    @torch.no_grad()
    def _check(self, groups: Groups, kwargs: dict[str, Any]) -> bool:
        """Compute a batch in both ways, in the precision of the weights; warn where they differ."""
        try:
            with torch.autocast(self._model.device.type, enabled=False):
                outputs = self._compute(groups, kwargs["labels"])
                expected = self._fused(**kwargs)
            distances = (outputs.log_probs - expected.log_probs)[expected.label_mask].abs()
            if distances.mean() <= TOLERANCE[self._model.dtype]:
                return True
            found = f"log-probabilities differ by {distances.mean():.2g} nats a token"
        except Exception as error:  # architectures refuse in no end of ways; TRL's takes them all
            found = f"{type(error).__name__}: {error}"
        log.warning("prompts are computed once a response: computed once for all, %s", found)
        return False

    def _distinct_rows(self, given: dict[str, Any]) -> FusedCausalLMOutput:
        """Return what TRL's forward returns, each row computed once."""
        columns = [name for name, value in given.items() if isinstance(value, torch.Tensor)]
        together = torch.cat([given[name] for name in columns], dim=1)
        _, numbers = torch.unique(together, dim=0, return_inverse=True)
        count = int(numbers.max()) + 1
        if count == len(numbers):
            return self._fused(**given)
        first = [numbers.tolist().index(number) for number in range(count)]
        outputs = self._fused(**{**given, **{name: given[name][first] for name in columns}})
        return _combined({n: v[numbers] for n, v in outputs.items() if v.dim() == 2})

    def _compute(self, groups: Groups, labels: torch.Tensor) -> FusedCausalLMOutput:
        """Return what TRL's forward returns for rows with these labels, (rows, tokens)."""
        count, length = labels.shape
        parts: dict[str, list] = {}
        for prompt, responses in groups.items():
            outputs = self._after(prompt, list(responses))
            # Of each field, one value a predicted token. A field of TRL's begins with the
            # prediction of a row's second token; where nothing is predicted it is 0.
            for name, values in outputs.items():
                if values.dim() != 2:
                    continue
                rows = parts.setdefault(name, [None] * count)
                for value, (response, numbers) in zip(values, responses.items(), strict=True):
                    before, end = len(prompt) - 1, len(prompt) + len(response) - 1
                    row = pad(value[: len(response)], (before, length - 1 - end))
                    for number in numbers:
                        rows[number] = row
        fields = {name: torch.stack(rows) for name, rows in parts.items()}
        return _combined(fields)

    def _after(self, prompt: Tokens, responses: Sequence[Tokens]) -> FusedCausalLMOutput:
        """Return TRL's fields of responses to one prompt, (responses, tokens of the longest one)."""
        device = self._model.device
        cache = DynamicCache(config=self._model.config)
        *before, last = prompt  # what the last token of a prompt predicts belongs to the response
        if before:
            ids = torch.tensor([before], device=device)
            self._model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(responses))
        labels = pad_sequence(
            [torch.tensor(response, device=device) for response in responses],
            batch_first=True,
            padding_value=IGNORED,
        )
        there = labels != IGNORED
        ids = pad(labels[:, :-1].clamp(min=0), (1, 0), value=last)
        return self._fused(
            input_ids=ids,
            attention_mask=pad(there.long(), (len(before), 0), value=1),
            past_key_values=cache,
            shift_labels=labels,
            fused_lm_head=True,
        )


def _combined(fields: dict[str, torch.Tensor]) -> FusedCausalLMOutput:
    """Return TRL's output of fields, (rows, tokens) each."""
    total = fields["label_mask"].sum().clamp(min=1)
    return FusedCausalLMOutput(loss=-fields["log_probs"].sum() / total, **fields)


def _groups(input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor) -> Groups:
    """Return which rows have which prompt and response, from tensors (rows, tokens).

    Empty where a row is not what TRL makes: a prompt, a response all of which is predicted, padding.
    """
    groups: Groups = {}
    rows = zip(input_ids.tolist(), labels.tolist(), attention_mask.tolist(), strict=True)
    for number, (ids, wanted, there) in enumerate(rows):
        # Nothing predicts a row's first token: it counts as prompt where a prompt is cut away.
        predicted = [place for place in range(1, len(ids)) if wanted[place] != IGNORED]
        if not predicted:
            return {}
        start, end = predicted[0], predicted[-1] + 1
        if wanted[start:end] != ids[start:end] or not all(there[:end]):
            return {}
        of_prompt = groups.setdefault(tuple(ids[:start]), {})
        of_prompt.setdefault(tuple(ids[start:end]), []).append(number)
    return groups


def _without_adapters(model: torch.nn.Module) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _drops(model: torch.nn.Module) -> bool:
    """Tell whether a model has dropout; transformers' is a number in a module, or a module."""
    return any(
        value > 0
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float)
        and ("drop" in name or (name == "p" and isinstance(module, torch.nn.Dropout)))
    )


def _stretches(text_config: PreTrainedConfig) -> bool:
    """Tell whether a model's rotary frequencies change with the length of what is computed at once."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    kinds = {
        rope.get("rope_type"),
        *(of.get("rope_type") for of in rope.values() if type(of) is dict),
    }
    return bool(kinds & {"dynamic", "longrope"})


def _has_plain_cache(config: PreTrainedConfig) -> bool:
    try:
        layers = {type(layer) for layer in DynamicCache(config=config).layers}
    except Exception:  # layers of kinds that transformers has no cache for
        return False
    return bool(layers) and layers <= PLAIN_LAYERS
