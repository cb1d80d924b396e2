"""The answer of a chat-completions API, as far as it is used."""

from pydantic import BaseModel, Field


class AnswerMessage(BaseModel):
    content: str | None = None
    refusal: str | None = None


class Choice(BaseModel):
    message: AnswerMessage
    finish_reason: str | None = None


class AnswerUsage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answer(BaseModel):
    """Hold what is used of an answer: some servers put odd things into the rest."""

    choices: list[Choice] = Field(min_length=1)
    usage: AnswerUsage | None = None
