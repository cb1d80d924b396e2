"""A chat-completions endpoint on loopback, which the unmodified client talks to over HTTP.

What it writes is up to the test: `write` gets a request's body and returns a text or an `Answer`. Its
tokens are words. Tests can make it fail: see `Fault`.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from faults import is_due

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """What the model writes, beside what an endpoint says of it.

    Attributes:
        usage: whether tokens are reported.
    """

    text: str | None
    finish_reason: str = "stop"
    refusal: str | None = None
    usage: bool = True


@dataclass
class Fault:
    """What goes wrong with requests, so many times.

    Attributes:
        status: answer with this status, `headers` and `body`.
        cut: hang up after so many bytes of the answer.
        stall: seconds to wait before the answer.
        when: for which requests' bodies; all by default.
        after: how many of them are let through first.
        times: how often; None for always.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    cut: int | None = None
    stall: float = 0
    when: Callable[[dict], bool] = lambda body: True
    after: int = 0
    times: int | None = 1

    def meets(self, body: dict) -> bool:
        return self.when(body) and is_due(self)


@dataclass(frozen=True)
class Request:
    """What was asked, by which key, and when it came (seconds of a clock)."""

    body: dict[str, Any]
    key: str | None
    came: float
    path: str


class ChatServer:
    """Use as a context manager; `url` is the base URL.

    Attributes:
        write: what is answered to a request's body.
        faults: to come; the first that meets a request happens.
        requests: all so far.
        takes_schema: whether `response_format` is accepted, or refused as unknown.
        delay: seconds that each answer takes.
        most: the most requests that were under way at a time.
    """

    write: Callable[[dict], "str | Answer"]

    def __init__(self):
        self.clear()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"chat": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "ChatServer":
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def clear(self) -> None:
        """Forget everything, and write one sentence to whatever is asked."""
        self.write = lambda body: "This is what I have to say."
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.takes_schema, self.delay = True, 0.0
        self.under_way = self.most = 0

    @property
    def prompts(self) -> list[str]:
        """The last message of each request."""
        return [request.body["messages"][-1]["content"] for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    chat: ChatServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_POST(self) -> None:
        came = time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        with self.chat.lock:
            # A request that stalls may outlive its test: it must not take what is meant for the next.
            requests, write = self.chat.requests, self.chat.write
            requests.append(Request(body, key, came, self.path))
            self.chat.under_way += 1
            self.chat.most = max(self.chat.most, self.chat.under_way)
            fault = next((fault for fault in self.chat.faults if fault.meets(body)), None)
        try:
            self._reply(body, fault or Fault(), write)
        finally:
            with self.chat.lock:
                if self.chat.requests is requests:
                    self.chat.under_way -= 1

    def _reply(self, body: dict, fault: Fault, write: Callable[[dict], "str | Answer"]) -> None:
        time.sleep(self.chat.delay + fault.stall)
        if fault.status != 200 or fault.body is not None:
            return self._send(fault.status, (fault.body or "").encode(), fault.headers)
        if self.path != "/v1/chat/completions":
            return self._send(404, b'{"detail": "Not Found"}')
        if "response_format" in body and not self.chat.takes_schema:
            return self._send(400, b'{"error": {"message": "unknown field response_format"}}')
        content = json.dumps(self._completion(body, write(body))).encode()
        self._send(200, content, fault.headers, fault.cut)

    def _completion(self, body: dict, answer: "str | Answer") -> dict:
        if isinstance(answer, str):
            answer = Answer(answer)
        text, reason = answer.text, answer.finish_reason
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        if text and limit and len(text.split()) > limit:
            text, reason = " ".join(text.split()[:limit]), "length"
        message = {"role": "assistant", "content": text, "refusal": answer.refusal}
        done = {
            "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": reason, "message": message}],
        }  # fmt: skip
        if answer.usage:
            asked = sum(len(message["content"].split()) for message in body["messages"])
            written = len((text or "").split())
            done["usage"] = {
                "prompt_tokens": asked, "completion_tokens": written,
                "total_tokens": asked + written,
            }  # fmt: skip
        return done

    def _send(
        self, status: int, content: bytes, headers: dict | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**JSON, **(headers or {}), "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content[:cut])
        self.wfile.flush()
        if cut is not None:
            self.close_connection = True
            self.connection.close()
