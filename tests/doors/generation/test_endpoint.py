"""An endpoint writes by the same procedure, as tested against a real server, Transformers' own, on loopback."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from reprune.doors.generation.endpoint import EndpointAuthor, EndpointError
from reprune.doors.generation.generate import generate
from reprune.doors.generation.local import LocalAuthor
from reprune.errors import InputError
from reprune.planning.generation import rounds
from reprune.planning.generation.firsts import first_tokens
from reprune.planning.generation.settings import PREFIX, Generation
from tests import tiny
from tests.doors.conftest import Cli
from tests.doors.generation.test_generate import FLAGS, SMALL, lines, reads
from tests.engine import together


@pytest.fixture(scope="module")
def server(llama: Path) -> Iterator[tuple[str, str]]:
    """The URL of a server with the tiny model, and the server's name of the model."""
    port = together.free_port()
    command = [Path(sys.executable).parent / "transformers", "serve", str(llama), "--host", "127.0.0.1"]
    options = ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    log = subprocess.DEVNULL
    with subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log) as process:
        try:
            for _ in range(600):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                        break
                except OSError:
                    assert process.poll() is None, "the server ended"
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1", str(llama)
        finally:
            process.terminate()


@contextmanager
def answering(
    answer: Callable[[dict[str, Any]], Any], model: str | None = "m", settings: Generation = SMALL
) -> Iterator[EndpointAuthor]:
    """The author behind a server whose answers a function gives: JSON, bytes of HTML, or the status of a refusal.

    For the list of its models, the function is called with {}.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(answer({}))

        def do_POST(self) -> None:
            self._send(answer(json.loads(self.rfile.read(int(self.headers["content-length"])))))

        def _send(self, found: Any) -> None:
            html = isinstance(found, bytes)
            data = found if html else found.encode() if isinstance(found, str) else json.dumps(found).encode()
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("content-type", "text/html" if html else "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/v1"
            with closing(EndpointAuthor(url, model, tiny.tokenizer(), settings)) as author:
                yield author
        finally:
            server.shutdown()


def completion(text: object, **more: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": "length", **more}]}


@pytest.fixture(autouse=True)
def half_is_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "language_of", reads)


def test_it_begins_as_the_model_here_does(server: tuple[str, str], llama: Path, request: pytest.FixtureRequest) -> None:
    """The twin: greedy beginnings by the same model in this process."""
    tokenizer = tiny.tokenizer()
    here = LocalAuthor(llama, tokenizer, SMALL, "cpu", "float32")
    there = EndpointAuthor(*server, tokenizer, SMALL, concurrency=3)
    request.addfinalizer(there.close)
    # A server takes text, so only beginnings whose text gives the same tokens again can be compared.
    firsts = [
        int(i)
        for i in first_tokens(tokenizer, here.rows).ids
        if tokenizer(tokenizer.decode([i]))["input_ids"] == [1, i]
    ]
    texts = [text for text, _ in here.begin(firsts[:40])]
    plain = [place for place, text in enumerate(texts) if "\ufffd" not in text]
    assert len(plain) > 10
    found = [text for text, _ in there.begin(firsts[:40])]
    assert [found[place] for place in plain] == [texts[place] for place in plain]


def test_it_fills_a_file_as_the_model_here_would(server: tuple[str, str], here: Path, cli: Cli) -> None:
    url, name = server
    said = cli("generate", "llama", "--out", "self.jsonl", *FLAGS, "--endpoint", url, "--endpoint-model", name)
    assert (said.code, said.err) == (0, "")
    found = lines(here / "self.jsonl")
    tokenizer = tiny.tokenizer()
    assert len(found) == 9
    for line in found:
        assert 8 <= len(line["token_ids"]) <= 24
        assert line["token_ids"] == tokenizer(line["text"], add_special_tokens=False)["input_ids"][:24]
        assert reads(line["prefix"]).code == "en"
    manifest = json.loads((here / "self.manifest.json").read_text())
    assert manifest["made_by"]["endpoint_model"] == name
    assert "127.0.0.1" not in (here / "self.manifest.json").read_text(), "where a server is, is nobody's business"


def test_words_are_drawn_from_all_that_the_model_gives_a_chance(server: tuple[str, str]) -> None:
    """By default, Transformers takes the likeliest word, or draws from the 50 likeliest."""
    one_word = SMALL.model_copy(update={"length": PREFIX + 1, "batch_size": 1})
    for settings, least, most in (
        (one_word, 55, 160),  # bytes that are no character look alike
        (one_word.model_copy(update={"top_k": 3}), 2, 3),
        (one_word.model_copy(update={"temperature": 0.001}), 1, 2),
    ):
        with closing(EndpointAuthor(*server, tiny.tokenizer(), settings)) as author:
            texts = {one.text for one in author.write([(70, 71, 72, 73, 74)] * 160, 0)}
        assert least <= len(texts) <= most


OFF = {"min_p": 0.0, "repetition_penalty": 1.0}


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("likelihoods", [True, False])
@pytest.mark.parametrize("kind", ["vLLM", "Transformers", "OpenAI"])
def test_a_server_is_asked_to_leave_its_own_defaults_out_in_the_way_that_it_takes(
    kind: str, likelihoods: bool, top_k: int | None
) -> None:
    own = {"do_sample": True, "top_k": top_k or 0, **OFF}
    expected: dict[str, Any] = {
        "vLLM": {"top_k": top_k or -1, **OFF},
        "Transformers": {"generation_config": own},
        "OpenAI": {"top_k": top_k} if top_k else {},
    }[kind]
    known = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", *expected}
    asked: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> object:
        if not request.keys() <= known | ({"logprobs"} if likelihoods else set()):
            return 422 if kind == "Transformers" else 400
        asked.append(request)
        return completion(" man")

    with answering(answer, settings=SMALL.model_copy(update={"top_k": top_k})) as author:
        author.begin([70])
        author.write([(70, 71)], 0)
    assert len(asked) == 3
    for request in asked:
        sent = {key: json.loads(said) if key == "generation_config" else said for key, said in request.items()}
        assert {key: said for key, said in sent.items() if key in expected or key in OFF} == expected
        assert request.get("logprobs") == (1 if likelihoods else None)
    assert [request.get("temperature") for request in asked] == [None, 0.0, 1.0]


def test_only_the_tokenizer_is_needed_here(server: tuple[str, str], llama: Path, here: Path) -> None:
    bare = here / "bare"
    shutil.copytree(llama, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    manifest = generate(
        bare, here / "self.jsonl", samples=2, settings=SMALL, endpoint=server[0], endpoint_model=server[1]
    )
    assert manifest["texts"] == 2
    with pytest.raises(InputError, match=r"holds no .*safetensors"):
        generate(bare, here / "other.jsonl", samples=2, settings=SMALL)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--endpoint", "http://127.0.0.1:9/v1"],
            "--endpoint http://127.0.0.1:9/v1: cannot be reached; start the server",
        ),
        (["--endpoint", "ftp://me:secret@host/v1"], "--endpoint ftp://host/v1: expected a URL such as http://"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--concurrency", "0"], "--concurrency 0: expected at least 1."),
    ],
)
def test_a_server_that_cannot_be_used_is_named(
    flags: list[str], message: str, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reprune.doors.generation.endpoint._RETRIES", 0)
    said = cli("generate", "llama", "--out", "self.jsonl", *FLAGS, *flags)
    assert said.code == 2
    assert said.err.startswith(f"error: {message}")
    assert not list(here.glob("*self*"))


def test_a_path_without_completions_is_named(server: tuple[str, str], here: Path, cli: Cli) -> None:
    url = server[0].removesuffix("/v1") + "/nothing"
    said = cli("generate", "llama", "--out", "self.jsonl", *FLAGS, "--endpoint", url, "--endpoint-model", "m")
    assert said.code == 2
    assert "has no completions of the model 'm'" in said.err


def test_a_server_that_goes_away_ends_it_with_what_is_written(
    server: tuple[str, str], here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first round, nothing is at the URL."""
    written = EndpointAuthor.write
    rounds_done: list[int] = []

    def write(self: EndpointAuthor, prefixes: object, number: int) -> object:
        if rounds_done:
            self._client.base_url, self._client.max_retries = "http://127.0.0.1:9/v1", 0  # type: ignore[assignment]
        rounds_done.append(number)
        return written(self, prefixes, number)  # type: ignore[arg-type]

    # More texts than one round, which is two batches, can keep.
    flags = [*FLAGS, "--samples", "15", "--endpoint", server[0], "--endpoint-model", server[1]]
    with monkeypatch.context() as away:
        away.setattr(EndpointAuthor, "write", write)
        said = cli("generate", "llama", "--out", "self.jsonl", *flags)
    assert said.code == 1
    assert "cannot be reached" in said.err
    assert "What is written is kept; the same command goes on from there." in said.err
    before = lines(here / "self.jsonl")
    again = cli("generate", "llama", "--out", "self.jsonl", *flags)
    assert (again.code, again.err) == (0, "")
    assert lines(here / "self.jsonl")[: len(before)] == before
    assert len(lines(here / "self.jsonl")) == 15


STRANGE = [
    b"<html>",
    "{oops",
    {"error": {"message": "the model is loading"}},
    {"choices": None},
    {"choices": []},
    {"choices": [{"index": 0}]},
    completion(None),
    completion("\ud83d"),
    '{"choices":' + "[" * 100_000,
]


@pytest.mark.parametrize("strange", STRANGE)
def test_an_answer_that_is_no_completion_is_named(strange: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, when nothing is written yet, and later, when a text may still come."""
    message = r"does not answer with a completion \(.*\); check the URL \(it often ends in /v1\)\."
    with pytest.raises(InputError, match=message), answering(lambda request: strange):
        pass
    answers: list[object] = [completion("a"), strange, completion(" man"), strange, strange]
    monkeypatch.setattr("reprune.doors.generation.endpoint._RETRIES", 1)
    monkeypatch.setattr("reprune.doors.generation.endpoint._PAUSE", 0.0)
    with answering(lambda request: answers.pop(0)) as author:
        assert [one.text for one in author.write([(70, 71)], 0)] == [tiny.tokenizer().decode([70, 71]) + " man"]
        with pytest.raises(EndpointError, match=rf"{message} What is written is kept"):
            author.write([(70, 71)], 0)


@pytest.mark.parametrize(
    "strange", [b"<html>", "{oops", {"models": []}, {"data": None}, {"data": ["m"]}, "[" * 100_000]
)
def test_what_is_no_list_of_models_is_named(strange: object) -> None:
    message = r"\(no list of models\); check the URL"
    with pytest.raises(InputError, match=message), answering(lambda request: strange, model=None):
        pass


def test_a_server_that_hangs_is_said_to_have_been_asked_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reprune.doors.generation.endpoint._SECONDS", 0.1)
    monkeypatch.setattr("reprune.doors.generation.endpoint._RETRIES", 1)
    asked: list[dict[str, Any]] = []

    def hang(request: dict[str, Any]) -> None:
        asked.append(request)
        time.sleep(0.3)

    with pytest.raises(InputError, match=r"gave no answer in 0 seconds, 2 times; take a shorter"), answering(hang):
        pass
    assert len(asked) == 2


def test_an_interrupt_waits_for_no_answer() -> None:
    """Nor does Python at its end, which waits for threads that are not daemons."""
    main, before = threading.main_thread(), threading.enumerate()
    over, answered = threading.Event(), threading.Event()

    def answer(request: dict[str, Any]) -> object:
        if "seed" in request:
            assert main.ident is not None
            signal.pthread_kill(main.ident, signal.SIGINT)
            over.wait(30)
            answered.set()
        return completion(" man")

    with answering(answer) as author:
        with pytest.raises(KeyboardInterrupt):
            author.write([(70, 71)], 0)
        assert not answered.is_set()
        assert all(one.daemon for one in threading.enumerate() if one not in before)
        over.set()


@pytest.mark.parametrize("url", ["http://[::1", "http://localhost:port/v1"])
def test_what_is_no_url_is_named(url: str) -> None:
    with pytest.raises(InputError, match=r"--endpoint http.*: expected a URL such as .* \(Invalid port"):
        EndpointAuthor(url, "m", tiny.tokenizer(), SMALL)


@pytest.mark.parametrize(
    "url", ["bob:secret@host/v1", "http://bob:secret/@host:port/v1", "http://bob:secret/@host", "http://[::1?k=secret"]
)
def test_what_is_secret_in_a_url_is_not_shown(url: str) -> None:
    with pytest.raises(InputError, match=r"--endpoint (http://)?(host|\[::1).*: expected a URL") as refused:
        EndpointAuthor(url, "m", tiny.tokenizer(), SMALL)
    assert "secret" not in str(refused.value)


def test_a_server_that_repeats_what_it_was_sent_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with (
        pytest.raises(InputError, match=r"no text in .*'Bearer <OPENAI_API_KEY>'") as refused,
        answering(lambda request: {"you": "Bearer sk-secret"}),
    ):
        pass
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("told", "mean"),
    [([-1.0, None, -2], -1.5), (["a"], None), ([-1.0, -math.inf], None), ([-(10**400)], None), (5, None), (None, None)],
)
def test_likelihoods_that_are_no_numbers_are_not_known(told: object, mean: float | None) -> None:
    answer = completion(" man", logprobs={"token_logprobs": told})
    with answering(lambda request: answer) as author:
        assert [one.mean_log_probability for one in author.write([(70, 71)], 0)] == [mean]


def test_a_token_that_is_no_text_ends_one() -> None:
    with answering(lambda request: completion(" man</s> dog<unk>")) as author:
        (one,) = author.write([(70, 71)], 0)
    text = tiny.tokenizer().decode([70, 71]) + " man"
    assert (one.text, one.ended) == (text, True)
    assert list(one.token_ids) == tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]


def test_a_prefix_of_more_tokens_leaves_room_for_less() -> None:
    """A server refuses sequences that are longer than its model accepts."""
    asked: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> object:
        asked.append(request)
        return completion(" man")

    prefixes = [(70, 71), (70, 71, 72, 73, 74), tuple(range(70, 79)), tuple(range(70, 110))]
    with answering(answer) as author:
        author.write(prefixes, 0)
    room = {request["prompt"]: request["max_tokens"] for request in asked[1:]}
    for prompt, tokens in room.items():
        length = len(tiny.tokenizer()(prompt, add_special_tokens=False)["input_ids"])
        assert tokens == max(1, SMALL.length - max(PREFIX, length))
    assert max(room.values()) == SMALL.length - PREFIX > min(room.values()) == 1
