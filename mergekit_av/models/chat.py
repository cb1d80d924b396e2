"""From a prompt and its responses to token ids, exactly as TRL's trainers make them.

A conversation goes through the chat template: once alone with the generation prompt, once with
each response. The response's tokens are what the template adds: the text and whatever ends the
turn, the same for every level. Plain text is used as it is, with the end-of-sequence token after
the response. The end of a turn counts as part of the response in training and in evaluation.

What a model is asked to answer is the whole prompt. A response is trained and scored behind as much
of it as the two renderings share: a template may end the prompt with what it does not write before
a given response, such as `<think>`.
"""

import logging
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from mergekit_av.data.records import Message, Record
from mergekit_av.errors import AVError, first_line

from .limits import within
from .load import load_tokenizer

log = logging.getLogger(__name__)

# For a base without a chat template. The space before the content keeps the generation prompt a
# prefix of the whole for tokenizers that join a space to the word after it.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}\n\n{% endfor %}"
    "{{ 'Assistant:' if add_generation_prompt }}"
)
# A conversation is rendered in milliseconds, on a busy machine in some more.
RENDER_SECONDS = 10
PLAIN_NOTICE = "no chat template: prompts are written as 'User: …', a blank line, 'Assistant: …'"


# Of a prompt's end that is left out, shown where that is said.
SHOWN = 60


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give a tokenizer without a chat template the plain one; say so in a sentence, or None."""
    if tokenizer.chat_template:
        return None
    tokenizer.chat_template = PLAIN_TEMPLATE
    return PLAIN_NOTICE


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    responses: Sequence[str],
) -> tuple[list[int], list[list[int]]]:
    """Token ids of the prompt, and of each response as the prompt's continuation.

    Where a tokenizer joins the prompt's end with a response's beginning, the response starts at
    the first token that differs (TRL's rule), for all responses alike.

    Raises:
        AVError: the chat template refuses the conversation.
    """
    prompt_ids = generation_prompt(tokenizer, prompt)
    if isinstance(prompt, str):
        end = tokenizer.eos_token or ""
        ended = [text if text.endswith(end) else text + end for text in responses]
        whole = [tokenizer(prompt + text)["input_ids"] for text in ended]
    else:
        messages = list(prompt)
        whole = [
            _render(tokenizer, [*messages, {"role": "assistant", "content": response}])
            for response in responses
        ]
    start = min(_common_prefix(prompt_ids, ids) for ids in whole)
    return prompt_ids[:start], [ids[start:] for ids in whole]


def generation_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message]
) -> list[int]:
    """Token ids of the whole prompt, from which a model answers.

    Raises:
        AVError: the chat template refuses the conversation.
    """
    if not isinstance(prompt, str):
        return _render(tokenizer, list(prompt), add_generation_prompt=True)
    ids, end = tokenizer(prompt)["input_ids"], tokenizer.eos_token
    if end and ids[-1:] == [tokenizer.eos_token_id] and not prompt.rstrip().endswith(end):
        ids = ids[
            :-1
        ]  # a tokenizer that ends every text would have the answer ended before it begins
    return ids


def left_out(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message], kept: Sequence[int]
) -> str:
    """Return the end of a whole prompt that is missing in `kept`, its beginning as of `encode`;
    often ""."""
    return tokenizer.decode(generation_prompt(tokenizer, prompt)[len(kept) :])


def cut_notice(tokenizer: PreTrainedTokenizerBase, records: Iterable[Record]) -> str | None:
    """Return where responses stand behind less than their whole prompts: a sentence that says so."""
    records = list(records)
    ends = []
    for record in records:
        kept, _ = encode(tokenizer, record.prompt, list(record.responses.values()))
        ends.append(left_out(tokenizer, record.prompt, kept))
    return cut_sentence(ends)


def cut_sentence(ends: Sequence[str]) -> str | None:
    """Return the same, from what is left out of each prompt."""
    cut = [end for end in ends if end]
    if not cut:
        return None
    shown = cut[0] if len(cut[0]) <= SHOWN else f"…{cut[0][-SHOWN:]}"
    return (
        f"the end of {len(cut)} of {len(ends)} generation prompts, such as {shown!r}, is left out "
        "where given responses are trained on and scored: with a response behind it, the chat "
        "template or the tokenizer writes it otherwise; answers are written from the whole prompt"
    )


def _render(tokenizer, messages: list[Message], **options) -> list[int]:
    def render() -> list[int]:
        return tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"]

    try:
        return within(RENDER_SECONDS, render)
    except Exception as error:  # a template is a program, which may fail in any way
        roles = ", ".join(message["role"] for message in messages)
        raise AVError(
            f"the chat template refuses a conversation of {roles}: {first_line(error)}"
        ) from error


def _common_prefix(left: list[int], right: list[int]) -> int:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length


def load_chat_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; give it the plain chat template where it has none, and log that.

    Raises:
        AVError: there is no tokenizer that loads.
    """
    tokenizer = load_tokenizer(base)
    if notice := ensure_chat_template(tokenizer):
        log.warning("%s: %s", base, notice)
    return tokenizer
