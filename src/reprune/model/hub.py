"""What the Hub, or a mirror of it, answers in place of what it is asked for, in words. Knows no models."""

from __future__ import annotations

import json
import os
from urllib.request import proxy_bypass

from reprune.errors import causes
from reprune.files.urls import without_secrets


def hub_answer(error: BaseException) -> str | None:
    """What was answered that an error of the Hub's libraries comes of, and what to do; None of any other error."""
    from huggingface_hub import constants

    if "://" not in constants.ENDPOINT:
        return f"HF_ENDPOINT is {without_secrets(constants.ENDPOINT)}; expected a URL, which begins with https://"
    for found in causes(error):
        if isinstance(found, json.JSONDecodeError) and not found.doc.lstrip().startswith(("{", "[")):  # a page
            return f"what answers is not {the_hub()}, but a proxy, for one; check HF_ENDPOINT and HTTPS_PROXY"
        status = getattr(getattr(found, "response", None), "status_code", None)
        if status in (401, 403):
            return f"{the_hub()} does not let you read it ({status}); check HF_TOKEN, or run 'hf auth login'"
        if status == 429:
            return f"{the_hub()} takes no more requests for now (429); wait some minutes, or run 'hf auth login'"
        if isinstance(status, int) and status >= 500:
            return f"{the_hub()} fails ({status}); try again later"
    return None


def the_hub() -> str:
    """The Hub, or what is asked in its place."""
    from huggingface_hub import constants

    given = os.environ.get("HF_ENDPOINT")
    return f"{without_secrets(constants.ENDPOINT)} (HF_ENDPOINT)" if given else "the Hub"


def not_reached() -> str:
    """That nothing answers, and by what it was asked."""
    proxy = next((name for name in _proxies() if os.environ.get(name)), None)
    return f"{the_hub()} cannot be reached{f' by the proxy of {proxy}' if proxy else ''}"


def _proxies() -> list[str]:
    """Variables that may name a proxy by which it is asked."""
    from huggingface_hub import constants

    scheme, _, rest = without_secrets(constants.ENDPOINT).partition("://")
    if constants.HF_HUB_OFFLINE or proxy_bypass(rest.partition("/")[0]):  # by NO_PROXY
        return []
    names = f"{scheme}_proxy".lower(), "all_proxy"
    return [name for lower in names for name in (lower.upper(), lower)]
