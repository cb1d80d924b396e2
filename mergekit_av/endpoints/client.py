"""Chat completions from any OpenAI-compatible endpoint, many at a time, within a budget."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from mergekit_av.errors import AVError
from mergekit_av.extras import require

from .answer import Answer, AnswerMessage, AnswerUsage, Choice
from .budget import Spending, Usage
from .catalog import Endpoint
from .config import ClientConfig
from .errors import completion_errors, explain, server_message, short

ATTEMPTS = 3  # to get an answer that keeps to a schema
# What a chat template may add around the messages, in tokens.
TEMPLATE = 64
FILTERED = ("content_filter", "content_policy_violation")

Message = dict[str, str]
Item = TypeVar("Item")
Result = TypeVar("Result")
Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True)
class Completion:
    """Hold what a model wrote.

    Attributes:
        text: without white space around it; empty where the provider's filter withheld it.
        finish_reason: `stop`; `length` where it was cut off; `content_filter`; or a server's own.
        usage: tokens and their price; of all asks, where there were several.
    """

    text: str
    finish_reason: str
    usage: Usage


class InvalidOutput(AVError):
    """Report that a model did not keep to a schema, however often it was asked.

    Attributes:
        completion: the last one, with the usage of all.
    """

    def __init__(self, message: str, completion: Completion):
        super().__init__(message)
        self.completion = completion


def connect(
    config: ClientConfig,
    before: Usage | None = None,
    *,
    temperature: float,
    needs_key: bool = True,
) -> "Completions":
    """Return the client that is configured.

    Args:
        before: what has been spent of the budget earlier.
        temperature: of sampling.
        needs_key: whether anything will be asked.

    Raises:
        UsageError: no model is named.
        AVError: see `find_endpoint` and `Spending`; the openai package is not installed.
    """
    require("synth", "openai", to="ask a model")
    endpoint = config.endpoint(needs_key)
    return Completions(
        endpoint,
        Spending(endpoint.price, config.budget, before),
        concurrency=config.concurrency,
        timeout=config.timeout,
        retries=config.retries,
        temperature=temperature,
    )


class Completions:
    """Ask one endpoint. What passes (429, 5xx, a lost connection, a time-out) is retried with back-off,
    and after the time that the server asks for.

    Args:
        spending: counts what completions cost, and holds the budget.
        concurrency: completions under way at a time.
        timeout: seconds without a sign of life after which a request is given up.
        retries: of one request.
        temperature: of sampling.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        spending: Spending,
        *,
        concurrency: int,
        timeout: float,
        retries: int,
        temperature: float,
    ):
        self.endpoint, self.spending = endpoint, spending
        self.concurrency, self.timeout, self.retries = concurrency, timeout, retries
        self.temperature = temperature
        self._takes_schema = True
        self._client: Any = None

    def run(
        self,
        items: Iterable[Item],
        work: Callable[[Item], Awaitable[Result]],
        keep: Callable[[Item, Result], None],
        *,
        total: int,
        done: int = 0,
        desc: str,
        unit: str,
    ) -> None:
        """Do `work`, which awaits `complete` or `structured`, for each item; several at a time.

        `keep` gets each result as soon as it is there, one at a time. After an error no item is begun
        any more, and those under way are ended and kept before it is raised; Ctrl-C drops them.

        Args:
            total, done: of the bar, on stderr: all items, and those that were done before.

        Raises:
            AVError: the endpoint fails for good, or the budget is spent.
        """
        with tqdm(total=total, initial=done, desc=desc, unit=unit) as bar:

            def keep_and_show(item: Item, result: Result) -> None:
                keep(item, result)
                bar.update()

            try:
                asyncio.run(self._run(iter(items), work, keep_and_show))
            except KeyboardInterrupt:
                kept = f"{desc}: {bar.n} of {total} are kept; the same command goes on from there"
                bar.write(kept, file=sys.stderr)
                raise

    async def _run(
        self,
        items: Iterator[Item],
        work: Callable[[Item], Awaitable[Result]],
        keep: Callable[[Item, Result], None],
    ) -> None:
        from openai import AsyncOpenAI, Timeout

        errors: list[Exception] = []

        async def worker() -> None:
            for item in items:
                try:
                    keep(item, await work(item))
                except Exception as error:
                    errors.append(error)
                if errors:
                    return

        self._released = asyncio.Condition()
        async with AsyncOpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.endpoint.key,
            max_retries=self.retries,
            timeout=Timeout(self.timeout, connect=min(self.timeout, 10)),
        ) as self._client:
            await asyncio.gather(*(worker() for _ in range(self.concurrency)))
        if errors:
            raise errors[0]

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        seed: int | None = None,
    ) -> Completion:
        """Return one completion; within `run`.

        Args:
            max_tokens: the most that the answer may have.
            seed: of sampling, for servers that take one: sent to the user's own, not to providers.

        Raises:
            AVError: the endpoint fails for good, or the budget is spent.
        """
        return await self._complete(messages, max_tokens, seed, None)

    async def structured(
        self,
        messages: Sequence[Message],
        schema: type[Schema],
        *,
        max_tokens: int,
        seed: int | None = None,
    ) -> tuple[Schema, Completion]:
        """Return one completion that keeps to a schema; within `run`. Arguments as of `complete`.

        The schema is in the request, where the server takes it, and in words in the last message. A
        model that does not keep to it is told what is wrong, and asked again.

        Raises:
            InvalidOutput: it keeps ignoring the schema.
            AVError: see `complete`.
        """
        shape = json.dumps(schema.model_json_schema(), ensure_ascii=False)
        last = messages[-1]["content"]
        asked = f"{last}\n\nAnswer with one JSON object that keeps to this JSON schema, and with nothing else:\n{shape}"
        conversation = [*messages[:-1], {**messages[-1], "content": asked}]
        spent = Usage()
        for attempt in range(ATTEMPTS):
            again = None if seed is None else seed + attempt
            completion = await self._complete(conversation, max_tokens, again, schema)
            spent += completion.usage
            completion = replace(completion, usage=spent)
            try:
                return schema.model_validate_json(_json_in(completion.text)), completion
            except ValidationError as error:
                fault = _fault(error)
            conversation = [
                *conversation[: len(messages)],
                {"role": "assistant", "content": completion.text},
                {
                    "role": "user",
                    "content": f"This is not valid: {fault}. Answer again, with the JSON object only.",
                },
            ]
        raise InvalidOutput(
            f"{self.endpoint.model} does not keep to the schema that it is given ({fault}): choose "
            "another model",
            completion,
        )

    async def _complete(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        seed: int | None,
        schema: type[BaseModel] | None,
    ) -> Completion:
        request: dict[str, Any] = {
            "model": self.endpoint.name,
            "messages": list(messages),
            "temperature": self.temperature,
            "extra_body": {self.endpoint.limit: max_tokens},
        }
        if seed is not None and self.endpoint.own:
            request["seed"] = seed
        most = self.spending.usage(_at_most(messages, schema), max_tokens)
        await self._hold(most)
        spent = None
        try:
            answer = await self._ask(request, schema)
            spent = self._usage(answer, messages)
        finally:
            self.spending.release(most, spent)
            async with self._released:
                self._released.notify_all()
        choice = answer.choices[0]
        text, reason = choice.message.content or "", choice.finish_reason or "stop"
        if not text and choice.message.refusal:
            text, reason = choice.message.refusal, "content_filter"
        return Completion(text.strip(), reason, spent)

    async def _hold(self, most: Usage) -> None:
        async with self._released:
            while not self.spending.hold(most):
                await self._released.wait()

    async def _ask(self, request: dict[str, Any], schema: type[BaseModel] | None) -> Answer:
        from openai import BadRequestError, UnprocessableEntityError

        while True:
            sent_schema = schema if self._takes_schema else None
            if sent_schema is not None:
                request["response_format"] = _response_format(sent_schema)
            else:
                request.pop("response_format", None)
            try:
                with completion_errors(self.endpoint, (BadRequestError, UnprocessableEntityError)):
                    create = self._client.chat.completions.with_raw_response.create
                    raw = await create(**request)
                return self._answer(raw.text)
            except (BadRequestError, UnprocessableEntityError) as error:
                if error.code in FILTERED:
                    withheld = Choice(message=AnswerMessage(), finish_reason="content_filter")
                    return Answer(choices=[withheld], usage=AnswerUsage())
                message = server_message(error.body)
                refuses_schema = "response_format" in message or "schema" in message
                if sent_schema is None or not refuses_schema:
                    raise AVError(explain(self.endpoint, error)) from None
                self._takes_schema = False  # the words in the prompt will have to do

    def _answer(self, content: str) -> Answer:
        try:
            return Answer.model_validate_json(content)
        except ValidationError:
            message = server_message(content) or "nothing"
            raise AVError(
                f"{self.endpoint.base_url} answers something that is no chat completion "
                f"({short(message)}): check the base URL, which mostly ends in /v1"
            ) from None

    def _usage(self, answer: Answer, messages: Sequence[Message]) -> Usage:
        counted = answer.usage
        if counted is None:  # the server does not say: some four bytes are a token
            written = answer.choices[0].message.content or ""
            return self.spending.usage(_bytes(messages) // 4, len(written.encode()) // 4)
        return self.spending.usage(counted.prompt_tokens, counted.completion_tokens)


def _bytes(messages: Sequence[Message]) -> int:
    return sum(len(message["content"].encode()) for message in messages)


def _at_most(messages: Sequence[Message], schema: type[BaseModel] | None) -> int:
    """Return the tokens that messages can have at most: no tokenizer makes several of one byte."""
    own = len(json.dumps(schema.model_json_schema())) if schema else 0
    return _bytes(messages) + own + TEMPLATE


def _response_format(schema: type[BaseModel]) -> dict[str, Any]:
    shape = {"name": schema.__name__, "schema": schema.model_json_schema(), "strict": True}
    return {"type": "json_schema", "json_schema": shape}


def _json_in(text: str) -> str:
    """Return the JSON object in a text; models like to put fences and words around it."""
    return text[text.find("{") : text.rfind("}") + 1] if "{" in text else text


def _fault(error: ValidationError) -> str:
    """Return the first thing that is wrong."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return short(f"{where}: {first['msg']}" if where else first["msg"])
