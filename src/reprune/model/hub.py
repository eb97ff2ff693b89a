"""The Hub, or a mirror of it: its progress bars, and its failed answers in words."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import proxy_bypass

from reprune.errors import causes, lacks_home, short
from reprune.files.urls import without_secrets

_SECONDS = 1.0  # before a bar is shown


@contextmanager
def late_bars() -> Iterator[Any]:
    """The Hub's class of progress bars, shown only after a second: most often all files are in the cache.

    Bars end with this context. Some the library leaves open, to be ended whenever Python collects them.
    """
    import huggingface_hub

    utils: Any = huggingface_hub.utils  # which is not typed
    bars: list[Any] = []

    class Late(utils.tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            bars.append(self)
            self._begun = time.monotonic()
            if sys.stderr is None:  # it is closed: tqdm would fail, and other threads wait for its lock
                options["disable"] = True
            super().__init__(*args, **{"delay": _SECONDS, **options})

        def display(self, *args: Any, **options: Any) -> Any:
            if time.monotonic() < self._begun + _SECONDS:  # tqdm waits with updates, but not with new words
                return None
            self.delay = 0  # it was shown, if only for new words, so tqdm has to end its line
            return super().display(*args, **options)

    try:
        yield Late
    finally:
        for bar in bars:
            bar.close()


def not_fetched(error: Exception, model: str, revision: str | None) -> str:
    """The message for a model, or a part of it, that could not be fetched; `error` is of the Hub's library."""
    from huggingface_hub import constants, errors

    endpoint = without_secrets(constants.ENDPOINT)
    page = f"{endpoint}/{model}"
    if isinstance(error, errors.HFValidationError):
        return f"{model}: neither a folder or file on this machine nor a valid Hub id (name or owner/name)."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{model}: has no revision {revision or constants.DEFAULT_REVISION}; see {page}."
    if isinstance(error, errors.GatedRepoError):  # a subclass of RepositoryNotFoundError
        return f"{model}: access is gated; accept the terms at {page}, then run 'hf auth login'."
    if isinstance(error, errors.RepositoryNotFoundError):
        why = "nor a model on the Hub that you may read; check the name, or run 'hf auth login'"
    elif (answer := hub_answer(error)) is not None:
        why = f"nor is it whole in the Hugging Face cache, and {answer}"
    elif unreached(error):
        cause = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else not_reached()
        why = f"nor is it whole in the Hugging Face cache, and {cause}; go online, or give a local model"
    elif lacks_home(error):
        why = "and there is no home folder to download it to; set HF_HOME to a folder"
    else:
        said = short(error).replace(constants.ENDPOINT, endpoint)
        why = f"and its download failed ({said}); try again, it goes on where it stopped"
    return f"{model}{f' at revision {revision}' if revision else ''}: no folder here, {why}."


def unreached(error: BaseException) -> bool:
    """Whether an error of the Hub's libraries says that no connection was made: offline, or without an answer."""
    from huggingface_hub import errors

    offline = errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled
    names = "ConnectError", "ConnectTimeout"  # of httpx
    return any(isinstance(found, offline) or type(found).__name__ in names for found in causes(error))


def hub_answer(error: BaseException) -> str | None:
    """The answer of the Hub that caused an error of its libraries, and what to do; None for any other error."""
    from huggingface_hub import constants

    if "://" not in constants.ENDPOINT:
        return f"HF_ENDPOINT is {without_secrets(constants.ENDPOINT)}; expected a URL, which begins with https://"
    for found in causes(error):
        if isinstance(found, json.JSONDecodeError) and not found.doc.lstrip().startswith(("{", "[")):  # a page
            return f"a server that is not {the_hub()} answers, such as a proxy; check HF_ENDPOINT and HTTPS_PROXY"
        status = getattr(getattr(found, "response", None), "status_code", None)
        if status in (401, 403):
            return f"{the_hub()} does not let you read it ({status}); check HF_TOKEN, or run 'hf auth login'"
        if status == 429:
            return f"{the_hub()} accepts no more requests for now (429); wait some minutes, or run 'hf auth login'"
        if isinstance(status, int) and status >= 500:
            return f"{the_hub()} fails ({status}); try again later"
    return None


def the_hub() -> str:
    """The Hub, or the endpoint that is used in its place."""
    from huggingface_hub import constants

    given = os.environ.get("HF_ENDPOINT")
    return f"{without_secrets(constants.ENDPOINT)} (HF_ENDPOINT)" if given else "the Hub"


def not_reached() -> str:
    """The words for a Hub that does not answer, with the variable of the proxy that was used."""
    proxy = next((name for name in _proxies() if os.environ.get(name)), None)
    return f"{the_hub()} cannot be reached{f' through the proxy in {proxy}' if proxy else ''}"


def _proxies() -> list[str]:
    """The environment variables that may name a proxy for the Hub; none if it is reached without one."""
    from huggingface_hub import constants

    scheme, _, rest = without_secrets(constants.ENDPOINT).partition("://")
    if constants.HF_HUB_OFFLINE or proxy_bypass(rest.partition("/")[0]):  # by NO_PROXY
        return []
    names = f"{scheme}_proxy".lower(), "all_proxy"
    return [name for lower in names for name in (lower.upper(), lower)]
