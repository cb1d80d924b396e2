"""A small Hub on loopback, which the unmodified huggingface_hub client talks to.

It keeps repositories in memory: commits, branches, pull requests, private ones behind tokens. Large
files come by LFS (one PUT or several parts) or by Xet (`xet_storage.py`), and only what has the
sha256 that was announced is stored. Tests can make it fail: see `Fault`.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from faults import is_due
from xet_storage import XetStorage

# What the Hub's own .gitattributes sends to large file storage.
LARGE = (".safetensors", ".bin", ".png")
PART = 100_000  # bytes; larger files come in parts
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class User:
    name: str
    role: str = "write"


@dataclass(frozen=True)
class File:
    """A file of a commit; `sha256` where it is in large file storage."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Of git: that of the content, or of the pointer to it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
        content = pointer.encode() if self.large else self.content
        return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


@dataclass
class Repo:
    """Commits (oid → path → file), and refs (name → oid)."""

    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, File], ref: str, message: str = "") -> str:
        oid = secrets.token_hex(20)
        self.commits[oid], self.refs[ref], self.messages[oid] = files, oid, message
        return oid

    def oid(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What a reader sees."""
        return {path: file.content for path, file in self.commits[self.oid(revision)].items()}


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD /path` matches, so many times.

    Attributes:
        status: answer with this status, and `headers`.
        cut_request: hang up after so many bytes of the request's body.
        cut_response: hang up after so many bytes of the answer's body.
        slow: seconds to wait in the middle of the answer's body.
        then: called before hanging up.
        after: how many matching requests are let through first.
        times: how often; None for always.
    """

    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = ""
    cut_request: int | None = None
    cut_response: int | None = None
    slow: float = 0
    then: Callable[[], None] = lambda: None
    after: int = 0
    times: int | None = 1

    def meets(self, request: str) -> bool:
        return bool(re.search(self.pattern, request)) and is_due(self)


@dataclass(frozen=True)
class Request:
    """What was asked: `METHOD /path`, of which host, by which token, and the bytes that came."""

    line: str
    host: str
    token: str | None
    received: int


class HangUp(Exception):
    pass


class Refuse(Exception):
    """Ends a request with an error as the Hub words it."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message or code}


class HubServer:
    """Use as a context manager; `url` is the endpoint.

    Attributes:
        users: token → user.
        repos: id → repository; `datasets/` stands before the id of a data set.
        faults: to come; the first that matches a request happens.
        requests: all so far.
        offer_xet: whether files may come and go by Xet.
    """

    users: dict[str, User]
    repos: dict[str, Repo]
    faults: list[Fault]
    requests: list[Request]
    objects: dict[str, bytes]
    uploads: dict[str, dict]

    def __init__(self):
        self.clear()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # Another host, as the Hub's content network is: no token may go there.
        self.network = f"http://localhost:{self.port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_repo(self, name: str, files: dict[str, bytes], private: bool = False) -> Repo:
        """A repository with one commit on main."""
        repo = self.repos[name] = Repo(private)
        repo.commit({p: File(c, p.endswith(LARGE)) for p, c in files.items()}, "main")
        return repo

    def clear(self) -> None:
        """Forget everything."""
        self.users, self.repos, self.objects, self.uploads = {}, {}, {}, {}
        self.faults, self.requests = [], []
        self.offer_xet, self.xet = True, XetStorage()

    def asked(self, pattern: str) -> list[Request]:
        return [request for request in self.requests if re.search(pattern, request.line)]


class _Handler(BaseHTTPRequestHandler):
    """One request: `ROUTES` says which method answers it."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer of two packets waits 40 ms for the second

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, HangUp):
            self.close_connection = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.line = f"{self.command} {url.path}"
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.fault = next((f for f in self.hub.faults if f.meets(self.line)), None)
        try:
            self.body = self._read_body()
        finally:
            line, host = f"{self.command} {self.path}", self.headers["Host"]
            self.hub.requests.append(Request(line, host, self.token, self.received))
        if self.fault and self.fault.status:
            return self.answer(self.fault.status, self.fault.message.encode(), self.fault.headers)
        try:
            for pattern, method in ROUTES:
                if match := re.fullmatch(pattern, self.line):
                    # The Hub takes refs/pr/1 as one part of a path: refs%2Fpr%2F1.
                    return method(self, *(part and unquote(part) for part in match.groups()))
            raise Refuse(404, "EntryNotFound")
        except Refuse as error:
            self.answer(error.status, b"{}", {**JSON, **error.headers})

    do_HEAD = do_POST = do_PUT = do_GET

    def _read_body(self) -> bytes:
        self.received = 0
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            self.received = len(body)
            return body
        length = int(self.headers.get("Content-Length") or 0)
        cut = self.fault and self.fault.cut_request
        body = self.rfile.read(length if cut is None else min(cut, length))
        self.received = len(body)
        if cut is not None:
            self._hang_up()
        return body

    def _hang_up(self) -> None:
        self.fault.then()
        self.connection.close()
        raise HangUp

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body)
        if self.fault and self.fault.cut_response is not None:
            half = self.fault.cut_response
        elif self.fault and self.fault.slow:
            half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        if self.fault and self.fault.cut_response is not None:
            self._hang_up()
        if half < len(body):
            time.sleep(self.fault.slow)
            self.wfile.write(body[half:])

    def answer_json(self, content: object, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), JSON)

    # --- who may do what ---------------------------------------------------------------------------

    def user(self) -> User | None:
        if self.token is None:
            return None
        if self.token not in self.hub.users:
            raise Refuse(401, message="Invalid credentials in Authorization header")
        return self.hub.users[self.token]

    def writer(self, namespace: str) -> User:
        user = self.user()
        if user is None:
            raise Refuse(401, message="Please log in")
        if user.role != "write" or user.name != namespace:
            raise Refuse(403, message=f"You don't have the rights to write to {namespace}")
        return user

    def repo(self, name: str, write: bool = False) -> Repo:
        repo, user = self.hub.repos.get(name), self.user()
        owner = name.split("/")[-2]
        if repo is None or (repo.private and (user is None or user.name != owner)):
            raise Refuse(404 if user else 401, "RepoNotFound", "Repository not found")
        if write:
            self.writer(owner)
        return repo

    def files(self, name: str, revision: str) -> tuple[str, dict[str, File]]:
        repo = self.repo(name)
        oid = repo.oid(revision)
        if oid is None:
            raise Refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repo.commits[oid]

    # --- repositories ------------------------------------------------------------------------------

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refuse(401, message="Please log in")
        token = {"displayName": "test", "role": user.role}
        self.answer_json(
            {"type": "user", "name": user.name, "orgs": [], "auth": {"accessToken": token}}
        )

    def create_repo(self) -> None:
        asked = json.loads(self.body)
        user = self.user()
        namespace = asked["organization"] or (user.name if user else "")
        self.writer(namespace)
        kind = "datasets/" if asked.get("type") == "dataset" else ""
        name = f"{kind}{namespace}/{asked['name']}"
        if name in self.hub.repos:
            return self.answer_json({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.add_repo(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private)
        self.answer_json({"url": f"{self.hub.url}/{name}", "name": name})

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        errors = []
        try:
            block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
            front = yaml.safe_load(block[1]) if block else {}
            if front.get("base_model_relation") not in (
                None,
                *("adapter", "merge", "quantized", "finetune"),
            ):
                errors.append({"message": '"base_model_relation" must be one of four'})
        except yaml.YAMLError as error:
            errors.append({"message": str(error)})
        self.answer_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def info(self, name: str, revision: str | None = None) -> None:
        oid, files = self.files(name, revision or "main")
        siblings = [{"rfilename": path} for path in files]
        private = self.hub.repos[name].private
        self.answer_json(
            {"id": name.removeprefix("datasets/"), "modelId": name, "sha": oid, "private": private, "tags": [],
             "siblings": siblings}
        )  # fmt: skip

    def tree(self, name: str, revision: str, folder: str | None = None) -> None:
        _, files = self.files(name, revision)
        inside = {p: f for p, f in files.items() if not folder or p.startswith(f"{folder}/")}
        if folder and not inside:
            raise Refuse(404, "EntryNotFound")
        self.answer_json([self._entry(path, file) for path, file in inside.items()])

    def paths_info(self, name: str, revision: str) -> None:
        _, files = self.files(name, revision)
        paths = parse_qs(self.body.decode())["paths"]
        self.answer_json([self._entry(path, files[path]) for path in paths if path in files])

    def _entry(self, path: str, file: File) -> dict:
        entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.oid}
        if file.large:
            lfs = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
            entry["lfs"] = lfs
            if self.hub.offer_xet and (hash := self.hub.xet.hash_of(file.content)):
                entry["xetHash"] = hash
        return entry

    def branch(self, name: str, branch: str) -> None:
        repo = self.repo(name, write=True)
        if branch in repo.refs:
            return self.answer_json({"error": "Reference already exists"}, 409)
        repo.refs[branch] = repo.refs["main"]
        self.answer_json({})

    def auth_check(self, name: str, write: str | None = None) -> None:
        self.repo(name, write=bool(write))
        self.answer_json({})

    # --- from the client ---------------------------------------------------------------------------

    def preupload(self, name: str, revision: str) -> None:
        """How each file must come, and what is there already."""
        self.repo(name, write="create_pr" not in self.query)
        _, there = self.files(name, revision)
        answers, request = [], json.loads(self.body)
        own = there[".gitignore"].content.decode() if ".gitignore" in there else ""
        rules = request.get("gitIgnore", own)
        for asked in request["files"]:
            path = asked["path"]
            ignored = f"*{path[path.rfind('.') :]}" in rules.split()
            mode = "lfs" if path.endswith(LARGE) else "regular"
            answer = {"path": path, "uploadMode": mode, "shouldIgnore": ignored}
            if path in there:
                answer["oid"] = there[path].etag
            answers.append(answer)
        self.answer_json({"files": answers})

    def lfs_batch(self, name: str) -> None:
        self.repo(name, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                upload = secrets.token_hex(8)
                self.hub.uploads[upload] = {"oid": oid, "size": size, "parts": {}}
                action = {"href": f"{self.hub.network}/lfs/{upload}"}
                if size > PART:
                    action["href"] += "/complete"
                    parts = range(1, -(-size // PART) + 1)
                    urls = {f"{n:05}": f"{self.hub.network}/lfs/{upload}/{n}" for n in parts}
                    action["header"] = {"chunk_size": str(PART), **urls}
                entry["actions"] = {"upload": action}
            objects.append(entry)
        self.answer_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, upload: str, part: str | None = None) -> None:
        upload = self.hub.uploads[upload]
        if part is None:
            self._store(upload["oid"], self.body)
            return self.answer(200)
        upload["parts"][int(part)] = self.body
        self.answer(200, headers={"ETag": f'"{hashlib.sha256(self.body).hexdigest()}"'})

    def lfs_complete(self, upload: str) -> None:
        upload = self.hub.uploads[upload]
        parts = json.loads(self.body)["parts"]
        content = [upload["parts"][part["partNumber"]] for part in parts]
        for part, body in zip(parts, content, strict=True):
            if part["etag"].strip('"') != hashlib.sha256(body).hexdigest():
                raise Refuse(400, message="wrong part")
        self._store(upload["oid"], b"".join(content))
        self.answer_json({})

    def _store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refuse(400, message="the content is not what was announced")
        self.hub.objects[oid] = content

    def commit(self, name: str, revision: str) -> None:
        propose = self.query.get("create_pr") == "1"
        repo = self.repo(name, write=not propose)
        oid, before = self.files(name, revision)
        files, message = dict(before), ""
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                if value.get("parentCommit") not in (None, oid):
                    raise Refuse(412, message="A commit has happened since. Please refresh")
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile":
                content = self.hub.objects.get(value["oid"], self.hub.xet.files.get(value["oid"]))
                if content is None or len(content) != value["size"]:
                    raise Refuse(400, message=f"{value['path']} was not uploaded")
                files[value["path"]] = File(content, True)
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refuse(400, message=f"unknown operation {item['key']}")
        answer = {"success": True}
        with self.hub.lock:
            if repo.oid(revision) != oid:
                raise Refuse(412, message="A commit has happened since. Please refresh")
            if propose:
                number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
                revision = f"refs/pr/{number}"
                answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
            new = repo.commit(files, revision, message)
        url = f"{self.hub.url}/{name}/commit/{new}"
        self.answer_json({**answer, "commitOid": new, "commitUrl": url})

    # --- to the client -----------------------------------------------------------------------------

    def resolve(self, name: str, revision: str, path: str) -> None:
        oid, files = self.files(name, revision)
        if path not in files:
            raise Refuse(404, "EntryNotFound", f"{path} does not exist on {revision}")
        file = files[path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file.etag}"'}
        if not file.large:
            return self._send(file.content, headers)
        headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        if self.hub.offer_xet and (hash := self.hub.xet.hash_of(file.content)):
            kind = "" if name.startswith("datasets/") else "models/"
            link = f'<{self.hub.url}/api/{kind}{name}/xet-read-token/{oid}>; rel="xet-auth"'
            headers |= {"X-Xet-Hash": hash, "Link": link}
        self.hub.objects[file.sha256] = file.content
        headers["Location"] = f"{self.hub.network}/network/{file.sha256}"
        self.answer(302, headers=headers)

    def download(self, oid: str) -> None:
        self._send(self.hub.objects[oid], {})

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
            status, content = 206, content[first : last + 1]
        self.answer(status, content, headers)

    # --- Xet ---------------------------------------------------------------------------------------

    def xet_token(self, name: str, kind: str, revision: str) -> None:
        self.repo(name, write=kind == "write" and "create_pr" not in self.query)
        if not self.hub.offer_xet:
            raise Refuse(404, "EntryNotFound")
        expires = int(time.time()) + 3600
        token = {"accessToken": f"xet-{kind}", "exp": expires, "casUrl": f"{self.hub.url}/cas"}
        headers = {
            "X-Xet-Cas-Url": token["casUrl"],
            "X-Xet-Access-Token": token["accessToken"],
            "X-Xet-Token-Expiration": str(expires),
        }
        self.answer(200, json.dumps(token).encode(), {**JSON, **headers})

    def xet_put(self, hash: str) -> None:
        self.answer_json({"was_inserted": self.hub.xet.add_xorb(hash, self.body)})

    def xet_shard(self) -> None:
        try:
            self.hub.xet.add_shard(self.body)
        except ValueError as error:
            raise Refuse(400, message=str(error)) from error
        self.answer_json({"result": 1})

    def xet_terms(self, hash: str) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        span = (int(wanted[1]), int(wanted[2]) + 1) if wanted else None
        answer = self.hub.xet.reconstruction(hash, span, f"{self.hub.url}/cas/xorbs")
        if answer is None:
            raise Refuse(416)
        self.answer_json(answer)

    def xet_get(self, hash: str) -> None:
        self._send(self.hub.xet.xorbs[hash], {})


_REPO = r"((?:datasets/)?[\w.-]+/[\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create_repo),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET /api/(?:models/)?{_REPO}", _Handler.info),
    (rf"GET /api/(?:models/)?{_REPO}/revision/([^/]+)", _Handler.info),
    (rf"GET /api/(?:models/)?{_REPO}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    (rf"POST /api/(?:models/)?{_REPO}/paths-info/([^/]+)", _Handler.paths_info),
    (rf"POST /api/(?:models/)?{_REPO}/branch/([^/]+)", _Handler.branch),
    (rf"GET /api/(?:models/)?{_REPO}/auth-check(/write)?", _Handler.auth_check),
    (rf"POST /api/(?:models/)?{_REPO}/preupload/([^/]+)", _Handler.preupload),
    (rf"POST /api/(?:models/)?{_REPO}/commit/([^/]+)", _Handler.commit),
    (rf"GET /api/(?:models/)?{_REPO}/xet-(read|write)-token/([^/]+)", _Handler.xet_token),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /lfs/(\w+)(?:/(\d+))?", _Handler.lfs_put),
    (r"POST /lfs/(\w+)/complete", _Handler.lfs_complete),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (r"GET /network/(\w+)", _Handler.download),
    (r"POST /cas/v1/xorbs/default/(\w+)", _Handler.xet_put),
    (r"POST /cas/v1/shards", _Handler.xet_shard),
    (r"GET /cas/v1/reconstructions/(\w+)", _Handler.xet_terms),
    (r"GET /cas/xorbs/(\w+)", _Handler.xet_get),
]
