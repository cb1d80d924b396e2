"""Completions from a real endpoint on loopback: what passes, what fails, what it costs."""

import json
import time

import pytest
from chat_server import Answer, Fault
from pydantic import BaseModel, ConfigDict

from mergekit_av.endpoints.budget import Budget, BudgetSpent, Price, Spending, Usage
from mergekit_av.endpoints.catalog import find_endpoint
from mergekit_av.endpoints.client import Completions, InvalidOutput, connect
from mergekit_av.endpoints.config import ClientConfig
from mergekit_av.errors import AVError, UsageError

KEY = "sk-notforanybodyelse"


class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    legs: int


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MISTRAL_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def client(chat, *, price=None, budget=None, before=None, model="tiny", **how) -> Completions:
    endpoint = find_endpoint(model, chat.url, price)
    spending = Spending(endpoint.price, Budget.parse(budget) if budget else None, before)
    settings = {"concurrency": 4, "timeout": 60, "retries": 2, "temperature": 1.0, **how}
    return Completions(endpoint, spending, **settings)


def ask(client: Completions, *questions: str, max_tokens: int = 50, seed=None) -> dict[str, object]:
    """Question → completion."""
    kept = {}

    async def work(question):
        return await client.complete(
            [{"role": "user", "content": question}], max_tokens=max_tokens, seed=seed
        )

    client.run(
        questions, work, kept.__setitem__, total=len(questions), desc="Asking", unit="question"
    )
    return kept


def ask_for_pet(client: Completions, seed=None):
    kept = []

    async def work(question):
        messages = [{"role": "user", "content": question}]
        return await client.structured(messages, Pet, max_tokens=50, seed=seed)

    client.run(["A pet?"], work, lambda _, pet: kept.append(pet), total=1, desc="", unit="pet")
    return kept[0]


# --- what goes well ----------------------------------------------------------------------------


def test_a_completion_has_text_finish_reason_and_usage(chat):
    chat.write = lambda body: " one two three \n"
    (done,) = ask(client(chat, price=Price(2, 10)), "Say a b c").values()
    assert (done.text, done.finish_reason) == ("one two three", "stop")
    assert done.usage == Usage(1, 4, 3, (4 * 2 + 3 * 10) / 1e6)


def test_what_is_cut_off_says_so(chat):
    chat.write = lambda body: "word " * 100
    (done,) = ask(client(chat), "Go on", max_tokens=7).values()
    assert (done.finish_reason, done.text.split()) == ("length", ["word"] * 7)


def test_what_a_filter_withholds_is_no_failure(chat):
    chat.faults = [Fault(400, body='{"error": {"message": "no", "code": "content_filter"}}')]
    chat.write = lambda body: Answer(None, refusal="I would rather not.")
    done = ask(client(chat, concurrency=1), "first", "second")
    assert [d.finish_reason for d in done.values()] == ["content_filter"] * 2
    assert [d.text for d in done.values()] == ["", "I would rather not."]


def test_usage_that_a_server_does_not_report_is_estimated(chat):
    chat.write = lambda body: Answer("x" * 40, usage=False)
    (done,) = ask(client(chat), "y" * 80).values()
    assert (done.usage.input, done.usage.output) == (20, 10)


def test_several_are_under_way_and_no_more_than_allowed(chat):
    chat.delay = 0.1
    questions = [str(number) for number in range(12)]
    assert set(ask(client(chat, concurrency=3), *questions)) == set(questions)
    assert chat.most == 3


def test_a_server_of_ones_own_gets_the_seed_and_the_name_as_it_is(chat):
    ask(client(chat, model="org/some-model", temperature=0.5), "hello", seed=7)
    body = chat.requests[0].body
    assert (body["model"], body["seed"], body["temperature"]) == ("org/some-model", 7, 0.5)
    assert body["max_tokens"] == 50


# --- which endpoint ----------------------------------------------------------------------------


def test_a_provider_has_its_address_key_price_and_words(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = find_endpoint("openai/gpt-4o")
    assert (found.name, found.base_url) == ("gpt-4o", "https://api.openai.com/v1")
    assert (found.limit, found.price, found.key) == ("max_completion_tokens", Price(2.5, 10), KEY)
    assert KEY not in repr(found)
    assert find_endpoint("openai/new").price is None
    assert find_endpoint("openai/gpt-4o", price=Price(1, 2)).price == Price(1, 2)


def test_a_server_here_costs_nothing_and_needs_no_key(chat, monkeypatch):
    assert find_endpoint("m", "http://localhost:1/v1").price == Price(0, 0)
    assert find_endpoint("m", "http://[::1]:1/v1").price == Price(0, 0)
    assert find_endpoint("m", "https://example.org/v1").price is None
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ask(client(chat), "hello")
    assert chat.requests[0].key == KEY


@pytest.mark.parametrize(
    ("model", "url", "message"),
    [
        ("openai/gpt-4o", None, "openai/gpt-4o needs a key: set OPENAI_API_KEY in the environment"),
        ("gpt-4o", None, "no provider is known for the model 'gpt-4o'"),
        ("mine/gpt", None, "PROVIDER/MODEL with one of openai, anthropic"),
        ("m", "localhost:8000", "'localhost:8000' is no address of an API"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(model, url, message):
    with pytest.raises(AVError, match=r"^.") as caught:
        find_endpoint(model, url)
    assert message in str(caught.value)


# --- what fails --------------------------------------------------------------------------------

PASSING = {
    "429": Fault(429, {"Retry-After": "0.2"}),
    "500": Fault(500),
    "503, twice": Fault(503, {"Retry-After": "0.1"}, times=2),
    "a connection that is cut": Fault(cut=40),
    "a stall": Fault(stall=2.5),
}


@pytest.mark.parametrize("what", PASSING)
def test_what_passes_is_retried(chat, what):
    chat.faults = [Fault(**vars(PASSING[what]))]
    # Short where the time runs out; elsewhere no machine is that slow.
    timeout = 1.5 if chat.faults[0].stall else 60
    (done,) = ask(client(chat, timeout=timeout), "hello").values()
    assert done.text == "This is what I have to say."
    assert chat.faults[0].times == 0


def test_the_time_that_a_server_asks_for_is_waited(chat):
    chat.faults = [Fault(429, {"Retry-After": "1.5"})]
    ask(client(chat), "hello")
    first, second = chat.requests
    assert second.came - first.came >= 1.5


def error(message: str) -> str:
    return json.dumps({"error": {"message": message}})


TOLD = {
    "401": (Fault(401, body=error(f"bad key {KEY}")), "does not accept the key (bad key ***)"),
    "403": (Fault(403, body=error("not yours")), "refuses this key (not yours)"),
    "404": (Fault(404, body=error("no such model")), "is not there (no such model): check the"),
    "429": (Fault(429, {"Retry-After": "500"}), "allows no more requests now"),
    "500": (Fault(500, times=None), "has trouble (500)"),
    "400": (Fault(400, body='{"detail": "pinned"}'), "refuses the request (400) (pinned)"),
    "a page": (Fault(body="<html>Hi</html>", headers={"Content-Type": "text/html"}), "Hi</html>"),
    "no JSON": (Fault(body="{nonsense"), "is no chat completion ({nonsense): check the base URL"),
    "no choices": (Fault(body='{"choices": []}'), "is no chat completion"),
    "an error that is a success": (Fault(body=error("overloaded")), "(overloaded)"),
    "cut off for good": (Fault(cut=40, times=None), "failed"),
    "stall": (Fault(stall=1, times=None), "has not answered in time: try a longer --timeout"),
}


@pytest.mark.parametrize("what", TOLD)
def test_what_does_not_pass_is_told_in_one_line(chat, what, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fault, message = TOLD[what]
    chat.faults = [Fault(**vars(fault))]
    with pytest.raises(AVError) as caught:
        ask(client(chat, timeout=0.3 if fault.stall else 60, retries=0), "hello")
    told = str(caught.value)
    assert message in told
    assert "\n" not in told and KEY not in told


def test_nobody_there_is_told_in_one_line(chat):
    own = client(chat, retries=0)
    own.endpoint = find_endpoint("m", "http://127.0.0.1:9/v1")
    with pytest.raises(AVError, match=r"the connection to http://127.0.0.1:9/v1 failed"):
        ask(own, "hello")


def test_what_is_under_way_is_kept_when_something_fails_and_nothing_more_is_begun(chat):
    chat.delay = 0.2
    chat.faults = [Fault(401, when=lambda body: body["messages"][0]["content"] == "1")]
    kept = {}
    own = client(chat, concurrency=3)

    async def work(question):
        return await own.complete([{"role": "user", "content": question}], max_tokens=5)

    with pytest.raises(AVError, match="does not accept"):
        own.run("0123456789", work, kept.__setitem__, total=10, desc="", unit="question")
    assert {"0", "2"} <= set(kept) and len(chat.requests) <= 6


# --- structured output -------------------------------------------------------------------------


def test_the_schema_goes_with_the_request_and_in_words(chat):
    chat.write = lambda body: '{"name": "Rex", "legs": 4}'
    pet, _ = ask_for_pet(client(chat))
    assert pet == Pet(name="Rex", legs=4)
    sent = chat.requests[0].body["response_format"]["json_schema"]
    assert sent["strict"] and sent["schema"] == Pet.model_json_schema()
    assert sent["schema"]["additionalProperties"] is False
    assert '"legs"' in chat.prompts[0]


def test_words_are_enough_for_a_server_that_takes_no_schema(chat):
    chat.takes_schema = False
    chat.write = lambda body: 'Sure!\n```json\n{"name": "Rex", "legs": 4}\n```'
    pet, _ = ask_for_pet(client(chat))
    assert pet.name == "Rex"
    assert ["response_format" in request.body for request in chat.requests] == [True, False]


def test_a_model_that_errs_is_told_and_asked_again(chat):
    answers = iter(['{"name": "Rex"}', '{"name": "Rex", "legs": 4}'])
    chat.write = lambda body: next(answers)
    pet, completion = ask_for_pet(client(chat), seed=5)
    assert pet.legs == 4
    assert "legs: Field required" in chat.prompts[1]
    assert completion.usage.calls == 2 == len(chat.requests)
    assert [request.body["seed"] for request in chat.requests] == [5, 6]


def test_a_model_that_ignores_the_schema_is_named(chat):
    chat.write = lambda body: "I like pets."
    with pytest.raises(InvalidOutput, match=r"^tiny does not keep to the schema") as caught:
        ask_for_pet(client(chat))
    assert len(chat.requests) == 3
    assert caught.value.completion.usage.calls == 3


# --- spending ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "20", "0USD", "twenty USD", "20 EUR", "-1USD"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(AVError, match="is no budget, like 20USD or 500000tokens"):
        Budget.parse(text)


def test_budgets_read_as_one_writes_them():
    assert Budget.parse("20USD") == Budget(20, "USD")
    assert Budget.parse("0.5 usd") == Budget(0.5, "USD")
    assert Budget.parse("500,000 tokens") == Budget.parse("500000tokens")


def test_an_item_that_could_exceed_the_budget_is_not_begun(chat):
    # Each reads 1 and writes 10 of at most 10; held is 64 + the bytes.
    chat.write = lambda body: "word " * 10
    own = client(chat, budget="300tokens", concurrency=1)
    with pytest.raises(BudgetSpent, match="budget of 300 tokens is spent but for 69"):
        ask(own, *map(str, range(100)), max_tokens=10)
    assert own.spending.total.tokens == 231 == 11 * len(chat.requests)


def test_a_budget_holds_however_many_are_under_way(chat):
    chat.delay = 0.02
    chat.write = lambda body: "word " * 40
    own = client(chat, budget="1000tokens", concurrency=16)
    with pytest.raises(BudgetSpent):
        ask(own, *map(str, range(100)), max_tokens=40)
    # Those that had to wait got their turn.
    assert 1000 - 105 - 41 < own.spending.total.tokens <= 1000


def test_a_budget_in_dollars_counts_what_was_spent_before(chat):
    before = Usage(10, 1000, 1000, 0.9)
    own = client(chat, price=Price(100, 1000), budget="1USD", before=before, concurrency=1)
    with pytest.raises(BudgetSpent, match=r"1 USD is spent but for 0\.0\d+"):
        ask(own, *map(str, range(100)), max_tokens=6)
    assert 0.9 < own.spending.total.usd <= 1


def test_a_budget_smaller_than_one_item_is_told_before_any_call(chat):
    with pytest.raises(BudgetSpent, match=r"smaller than what one item can cost, 1\d\d tokens"):
        ask(client(chat, budget="50tokens"), "hello")
    assert not chat.requests


def test_a_budget_in_dollars_needs_a_price():
    with pytest.raises(AVError, match="pass --price-in and --price-out"):
        Spending(None, Budget.parse("20USD"))


def test_an_endpoint_that_lasts_is_not_waited_for_at_the_end(chat):
    """Requests under way when one fails for good are waited for no longer than their time-out."""
    chat.faults = [
        Fault(stall=30, when=lambda body: body["messages"][0]["content"] == "slow"),
        Fault(401, when=lambda body: body["messages"][0]["content"] == "bad"),
    ]
    begun = time.monotonic()
    with pytest.raises(AVError):
        ask(client(chat, timeout=0.4, retries=0), "slow", "bad")
    assert time.monotonic() - begun < 20


def test_without_openai_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AVError, match=r"pip install 'mergekit-av\[synth\]'"):
        connect(ClientConfig("openai/gpt-4o"), temperature=1.0)


def test_a_client_is_made_of_its_configuration(chat):
    config = ClientConfig("tiny", chat.url, concurrency=2, timeout=60.0)
    found = connect(config, temperature=0.5)
    assert (found.concurrency, found.timeout, found.temperature) == (2, 60.0, 0.5)
    assert set(ask(found, "Who?")) == {"Who?"}
    with pytest.raises(UsageError, match="name a model with --judge-model"):
        connect(ClientConfig(prefix="judge-"), temperature=0.0)
