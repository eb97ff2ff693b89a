"""An author behind an endpoint: any server of OpenAI's completions interface (vLLM, SGLang, llama.cpp, Transformers).

The procedure is the same as with a model in this process. Token ids, which a server does not tell, come from the local
tokenizer applied to the returned text. Likelihoods are the server's, if it gives them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, final

from reprune.errors import InputError, RepruneError
from reprune.files.urls import without_secrets
from reprune.math.seeds import seed_of
from reprune.planning.generation.firsts import signs
from reprune.planning.generation.rounds import Author, Ids, Written
from reprune.planning.generation.settings import PREFIX, Generation

_RETRIES = 6  # the client waits longer before each, up to some 8 seconds
_SECONDS = 600.0  # for one text
_PAUSE = 0.5  # seconds after an invalid answer, doubled each time up to _LONGEST
_LONGEST = 8.0
_MOST = 1e9  # far larger in magnitude than any log-probability; NaN is not less either
_KEY = "OPENAI_API_KEY"


class EndpointError(RepruneError):
    """A server that answered before no longer does."""


class _Strange(Exception):
    """An answer does not follow the interface."""


@final
class EndpointAuthor(Author):
    """A server that writes texts, several at a time."""

    def __init__(
        self,
        url: str,
        model: str | None,
        tokenizer: Any,
        settings: Generation,
        concurrency: int = 16,
    ) -> None:
        """Check that the server is there and completes texts.

        Args:
            url: the server's base URL, such as http://localhost:8000/v1.
            model: the server's name of the model; None: the only one that it lists.
            concurrency: the number of requests at a time.

        Raises:
            InputError: the server cannot be used.
        """
        if importlib.util.find_spec("openai") is None:
            raise InputError("--endpoint needs the openai client; install it with: pip install 'reprune[endpoint]'")
        import openai

        if concurrency < 1:
            raise InputError(f"--concurrency {concurrency}: expected at least 1.")
        shown = without_secrets(url)
        self._place = f"--endpoint {shown}:"
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{self._place} expected a URL such as http://localhost:8000/v1.")
        self._tokenizer = tokenizer
        self.rows = len(tokenizer)
        self._signs = signs(tokenizer)
        self._settings = settings
        self._concurrency = concurrency
        self._secret_url = shown != url
        self._key = os.environ.get(_KEY)
        key = self._key or "none"
        try:
            self._client = openai.OpenAI(base_url=url, api_key=key, max_retries=_RETRIES, timeout=_SECONDS)
        except Exception as error:  # whatever its HTTP library raises
            said = f"expected a URL such as http://localhost:8000/v1 ({self._words(error)})."
            raise InputError(f"{self._place} {said}") from None
        self._more: dict[str, Any] = {}
        self.model = ""  # for errors before it is known
        try:
            self.model = model or self._only_model()
            self._more = self._probe()
        except (openai.OpenAIError, _Strange) as error:
            self.close()
            raise InputError(self._said(error)) from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _only_model(self) -> str:
        try:
            listed = [str(one.id) for one in self._client.models.list().data]
        except (AttributeError, TypeError, ValueError, RecursionError):  # the answer is not a list of models
            raise _Strange("no list of models") from None
        if len(listed) == 1:
            return listed[0]
        found = ", ".join(listed[:5]) or "none"
        raise InputError(f"{self._place} lists {len(listed)} models ({found}); name one: --endpoint-model.")

    def _probe(self) -> dict[str, Any]:
        """The options of all requests: the first of `_options` that the server accepts."""
        import openai

        *tried, last = self._options()
        for options in tried:
            with suppress(openai.BadRequestError, openai.UnprocessableEntityError):
                self._choice("The", max_tokens=1, **options)
                return options
        self._choice("The", max_tokens=1, **last)
        return last

    def _options(self) -> Iterator[dict[str, Any]]:
        """Options that a server may accept, the best first: with likelihoods, and drawing only as the settings say.

        What is not sent, servers take from the model's generation_config.json, or from defaults of their own, which
        leave words out or penalize repetition. Transformers then does not even draw: it takes the likeliest word.
        """
        top_k = self._settings.top_k
        off = {"min_p": 0.0, "repetition_penalty": 1.0}
        ways: list[dict[str, Any]] = [
            {"top_k": top_k or -1, **off},  # vLLM, SGLang, llama.cpp
            {"generation_config": json.dumps({"do_sample": True, "top_k": top_k or 0, **off})},  # Transformers
            {} if top_k is None else {"top_k": top_k},
        ]
        for likelihoods in ({"logprobs": 1}, {}):
            yield from ({"extra_body": way, **likelihoods} for way in ways)

    def _choice(self, prompt: str, **more: Any) -> Any:
        """The server's completion of a prompt; raises `_Strange` unless it has a text that can be encoded."""
        try:
            answer = self._client.completions.create(model=self.model, prompt=prompt, **more)
            choices = getattr(answer, "choices", None)
            choice = choices[0] if isinstance(choices, list) and choices else None
            if not isinstance(text := getattr(choice, "text", None), str):
                raise ValueError(f"no text in {' '.join(str(answer).split())}")
            text.encode()
        except (ValueError, RecursionError) as error:  # bad or too deep JSON, or a lone surrogate
            raise _Strange(str(error)) from None
        return choice

    def begin(self, firsts: Sequence[int]) -> list[tuple[str, Ids]]:
        prompts = [str(self._tokenizer.decode([first])) for first in firsts]
        greedy: dict[str, Any] = {"max_tokens": PREFIX - 1, "temperature": 0.0, **self._more}
        found = self._complete(prompts, [greedy] * len(prompts))
        texts = [prompt + choice.text for prompt, choice in zip(prompts, found, strict=True)]
        return [(text, self._ids(text)) for text in texts]

    def write(self, prefixes: Sequence[Ids], number: int) -> list[Written]:
        settings = self._settings
        prompts = [str(self._tokenizer.decode(prefix)) for prefix in prefixes]
        sampled: dict[str, Any] = {
            "temperature": settings.temperature,
            "top_p": settings.top_p or 1.0,
            **self._more,
        }
        options = [
            {**sampled, "max_tokens": self._room(prompt), "seed": seed_of(settings.seed, number, place, size=4)}
            for place, prompt in enumerate(prompts)  # seeds of 31 bits, which every server accepts
        ]
        found = self._complete(prompts, options)
        return [self._written(prompt, choice) for prompt, choice in zip(prompts, found, strict=True)]

    def _room(self, prompt: str) -> int:
        """How many tokens may follow. A prefix may have more tokens than it was written with, once tokenized again."""
        return max(1, self._settings.length - max(PREFIX, len(self._ids(prompt))))

    def _written(self, prompt: str, choice: Any) -> Written:
        text = prompt + choice.text
        told = getattr(getattr(choice, "logprobs", None), "token_logprobs", None)
        values = [value for value in told if value is not None] if isinstance(told, list) else []
        known = values and all(isinstance(value, int | float) and abs(value) < _MOST for value in values)
        mean = sum(values) / len(values) if known else None
        ids = self._ids(text)
        ended = getattr(choice, "finish_reason", None) == "stop"
        if (end := next((place for place, one in enumerate(ids) if one in self._signs), None)) is not None:
            ids, ended = ids[:end], True
            text = str(self._tokenizer.decode(ids))
        ids = ids[: self._settings.length]  # the server may have counted other tokens
        return Written(text, ids, mean, ended)

    def _complete(self, prompts: Sequence[str], options: Sequence[dict[str, Any]]) -> list[Any]:
        """The server's answers, in the order of the prompts."""
        import openai

        asked: list[Future[Any]] = [Future() for _ in prompts]
        left = deque(zip(asked, prompts, options, strict=True))
        unwanted = threading.Event()

        def ask(prompt: str, more: dict[str, Any]) -> Any:
            for attempt in range(_RETRIES):
                with suppress(_Strange):  # after other errors the client itself retries
                    return self._choice(prompt, **more)
                if unwanted.wait(min(_PAUSE * 2**attempt, _LONGEST)):
                    break
            return self._choice(prompt, **more)

        def work() -> None:
            with suppress(IndexError):  # none is left
                while not unwanted.is_set():
                    answer, prompt, more = left.popleft()
                    try:
                        answer.set_result(ask(prompt, more))
                    except BaseException as error:
                        answer.set_exception(error)

        try:
            for _ in range(min(self._concurrency, len(prompts))):
                threading.Thread(target=work, daemon=True).start()  # Python would wait for an executor's at its end
            return [one.result() for one in asked]
        except (openai.OpenAIError, _Strange) as error:
            raise EndpointError(
                f"{self._said(error)} What is written is kept; the same command goes on from there."
            ) from None
        finally:
            unwanted.set()

    def _ids(self, text: str) -> Ids:
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _words(self, error: Exception) -> str:
        """An error's message without secrets, as it may repeat what was sent."""
        if self._secret_url:
            return "its answer is not shown, as the URL has a user or a query"
        words = " ".join(str(error).split())
        return (words.replace(self._key, f"<{_KEY}>") if self._key else words)[:200]

    def _said(self, error: Any) -> str:
        """The message for an error: what went wrong, and what to do."""
        import openai

        detail = self._words(error)
        match error:
            case openai.APITimeoutError():
                asked = f"{_SECONDS:.0f} seconds, {_RETRIES + 1} times"
                said = f"gave no answer in {asked}; take a shorter --length or a lower --concurrency."
            case openai.APIConnectionError():
                said = "cannot be reached; start the server, or check the URL (it often ends in /v1)."
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                said = f"refuses the key; set {_KEY} to one that it takes."
            case openai.NotFoundError():
                said = f"has no completions of the model {self.model!r} ({detail}); check the URL and --endpoint-model."
            case openai.RateLimitError():
                said = f"is too busy, also after {_RETRIES} retries ({detail}); take a lower --concurrency."
            case _Strange():
                said = f"does not answer with a completion ({detail}); check the URL (it often ends in /v1)."
            case _:
                said = f"answers with an error ({detail})."
        return f"{self._place} {said}"
