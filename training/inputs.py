"""The inputs of a trainer: a base, the pairs that teach it something, the texts it is held on."""

import logging

from accelerate import PartialState
from tqdm import tqdm

from mergekit_av.errors import AVError
from mergekit_av.models.chat import cut_sentence, encode, left_out
from mergekit_av.models.scoring import context_length
from mergekit_av.models.vocabulary import check_ids

from .base import Base
from .drift import held_texts
from .job import SPLITS, Job
from .pairs import LAMBDA, with_different_responses

log = logging.getLogger(__name__)


class TrainerInputs:
    """Check what goes into the trainer of a job, and say what of it is cut or left out.

    Attributes:
        model: the base, in float32.
        folder: the base's.
        limit: tokens of prompt and response together, None where there is no limit.
        cut: number of responses that are cut, and of records that are left out.
        usable: split → numbers of the pairs that are trained on.
        held: split → texts as of `held_texts`; empty where nothing is held.

    Raises:
        AVError: nothing fits, no pair teaches anything, or a token has no embedding.
    """

    def __init__(self, job: Job, base: Base):
        self.model, self.tokenizer = base.model, base.tokenizer
        self.folder = base.folder
        if padding := job.arguments.pad_token:
            id = self.tokenizer.convert_tokens_to_ids(padding)
            check_ids(self.model, self.tokenizer, [id or 0], "--pad_token")
        # A checkpoint leaves tied weights out: nothing is missing, as the Trainer would warn.
        self.model._keys_to_ignore_on_save = set(self.model.all_tied_weights_keys)
        limits = [job.arguments.max_length, context_length(self.model)]
        self.limit = min((limit for limit in limits if limit is not None), default=None)
        self.cut = self._report_cut(job)
        self.usable = self._usable_pairs(job)
        self.held = {split: self._held(job, split) for split in SPLITS if job.held}

    def _report_cut(self, job: Job) -> dict[str, int]:
        """Count what the limit cuts or leaves out: TRL does both in silence.

        Raises:
            AVError: it leaves nothing of a split, or a token that is used has no embedding.
        """
        limit, tokenizer = self.limit, self.tokenizer
        cut = total = left = 0
        splits_with_room, cut_prompts = set(), []
        records = [record for record in job.records if record.split in SPLITS]
        for record in tqdm(records, desc="Counting tokens", delay=1):
            prompt, responses = encode(tokenizer, record.prompt, list(record.responses.values()))
            total += len(responses)
            if limit is not None and len(prompt) >= limit:
                left += 1
                continue
            cut_prompts.append(left_out(tokenizer, record.prompt, prompt))
            used = (max((prompt + ids)[:limit], default=0) for ids in responses)
            check_ids(self.model, tokenizer, used, f"record {record.id}")
            splits_with_room.add(record.split)
            cut += sum(limit is not None and len(prompt) + len(ids) > limit for ids in responses)
        for split in SPLITS:
            if split not in splits_with_room:
                raise AVError(
                    f"no prompt of the {split} records leaves room for a response in {limit} tokens: "
                    "raise --max_length, or take a base with a longer context"
                )
        if not PartialState().is_main_process:
            return {}
        where = f"the limit of {limit} tokens (--max_length, or the base's context)"
        if cut:
            log.warning("%d of %d responses go beyond %s: cut there", cut, total, where)
        if left:
            log.warning(
                "%d of %d records are left out: their prompts reach %s", left, len(records), where
            )
        if sentence := cut_sentence(cut_prompts):
            log.warning("%s", sentence)
        return {"responses_cut": cut, "records_left_out": left}

    def _usable_pairs(self, job: Job) -> dict[str, list[int]]:
        """Return the numbers of each split's pairs whose responses are not the same.

        Raises:
            AVError: nothing is left of a split, or of the training at one of the λ.
        """
        pairs = {split: job.pairs(split) for split in SPLITS}
        shown = None if job.arguments.truncation_mode == "keep_end" else self.limit
        usable = {
            split: with_different_responses(rows, self.tokenizer, shown)
            for split, rows in pairs.items()
        }
        for split, numbers in usable.items():
            if not numbers:
                raise AVError(f"in each of the {split} pairs both responses are the same")
        lambdas = {pairs["train"][number].get(LAMBDA) for number in usable["train"]}
        for row in pairs["train"]:
            if row.get(LAMBDA) not in lambdas:
                raise AVError(
                    f"in each of the train pairs at λ = {row[LAMBDA]:g} both responses are the same"
                )
        total, left = (sum(map(len, counted.values())) for counted in (pairs, usable))
        if left < total and PartialState().is_main_process:
            log.warning(
                "%d of %d pairs are left out: both responses are the same", total - left, total
            )
        return usable

    def _held(self, job: Job, split: str) -> list[tuple[list[int], int]]:
        records = [r for records in job.held.values() for r in records if r.split == split]
        texts = held_texts(records, self.tokenizer, self.limit, job.arguments.seed)
        used = (max(ids) for ids, _ in texts)
        check_ids(self.model, self.tokenizer, used, f"the held {split} records")
        return texts
