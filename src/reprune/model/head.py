"""The loss of a model on each token of a text, with logits in slices that fit a small memory and a CPU's caches.

The decoder runs once over a window. Then the model's own forward applies its head, and whatever scaling and capping
follow it, to some tokens of the decoder's output and some words of the vocabulary at a time. The model's forward is
not rebuilt here: only the forwards of its decoder and its head are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprune.errors import InputError, is_expected, is_of_gpu, short
from reprune.math.slices import slices
from reprune.model.block import Precision
from reprune.model.uncached import uncached
from reprune.model.whole import running

_TOKENS = 512  # at a time: enough for products to run at full speed
_LOGITS = {"cpu": 2**21}  # at a time: 8 MiB in float32, which stay in the caches
_LOGITS_ELSEWHERE = 2**25
_TRIED_TOKENS = 4
_NEAR = 1e-4  # of the largest logit: differences that the order of a sum may make in float32

Head = Callable[[Tensor], Tensor]
"""From hidden states (1, tokens, hidden) to logits (1, tokens, words)."""


@final
class TokenLosses:
    """A model's losses on windows of a text."""

    def __init__(self, model: Any, precision: Precision) -> None:
        """
        Args:
            model: a causal language model of Transformers, in evaluation mode.
            precision: of its products.
        """
        self._model = model
        self._decoder = find_decoder(model, precision)
        self._precision = precision
        self._logits = _LOGITS.get(model.device.type, _LOGITS_ELSEWHERE)
        self._linear: Any = model.get_output_embeddings()
        self._sliceable: bool | None = None if isinstance(self._linear, nn.Linear) else False
        if self._sliceable is None:
            self._weight: Tensor = self._linear.weight.detach().to(precision.products)  # (words, hidden)
            self._bias: Tensor | None = None if self._linear.bias is None else self._linear.bias.detach().float()

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """The negative log-probability (natural) of each token but the first, (tokens - 1,), float32.

        Args:
            ids: one window, (1, tokens), int64, on the model's device.

        Raises:
            InputError: the model does not run on these ids, or returns no logits.
        """
        device, following = self._model.device, ids.roll(-1, 1)[0]
        with _told(self._model), running(self._model, self._precision):
            if self._decoder is None:
                return torch.cat(list(self._by_whole(ids, following)))[:-1]
            output = self._decoder(input_ids=ids, use_cache=False)
        with self._precision.on(device):
            if self._sliceable is None:
                self._sliceable = self._try(output, ids)
            losses = self._by_words if self._sliceable else self._by_tokens
            return torch.cat(list(losses(output, ids, following)))[:-1]

    def _by_words(self, output: Any, ids: Tensor, following: Tensor) -> Iterator[Tensor]:
        """Losses of slices of tokens, each by slices of the vocabulary; `following` (tokens,) is what to predict."""
        for tokens in slices(0, ids.shape[1], _TOKENS):
            targets = following[tokens]  # (n,)
            run = self._runner(output, ids, tokens)
            # The targets' logits, which count most, are exact; in the sum of the others bfloat16's rounding cancels.
            exact = run(partial(self._chosen, words=targets))[:, 0]
            sums = []
            for words in slices(0, len(self._weight), max(self._logits // len(targets), 1)):
                logits = run(partial(self._some, words=words))  # (n, some words)
                inside = ((targets >= words.start) & (targets < words.stop)).nonzero()[:, 0]
                logits[inside, targets[inside] - words.start] = exact[inside]
                sums.append(logits.logsumexp(1))
            yield torch.stack(sums).logsumexp(0) - exact

    def _by_tokens(self, output: Any, ids: Tensor, following: Tensor) -> Iterator[Tensor]:
        """The same by slices of tokens only, for a model that does not treat each logit independently."""
        words = int(self._model.config.get_text_config().vocab_size)
        for tokens in slices(0, ids.shape[1], max(_LOGITS_ELSEWHERE // words, 1)):
            yield F.cross_entropy(self._runner(output, ids, tokens)(None), following[tokens], reduction="none")

    def _by_whole(self, ids: Tensor, following: Tensor) -> Iterator[Tensor]:
        """The same from all logits at once, for a model without a decoder that can be replaced."""
        logits = uncached(self._model, ids).logits  # (1, tokens, words)
        if logits.shape[:2] != ids.shape:
            raise ValueError(f"its logits are of shape {list(logits.shape)} for {list(ids.shape)} tokens")
        for tokens in slices(0, ids.shape[1], _TOKENS):
            yield F.cross_entropy(logits[0, tokens].float(), following[tokens], reduction="none")

    def _some(self, states: Tensor, words: slice) -> Tensor:
        """The head's output for some words, (1, tokens, words), in float32 so that what follows does not round it."""
        logits = F.linear(states[0].to(self._weight.dtype), self._weight[words]).float()
        return (logits if self._bias is None else logits + self._bias[words])[None]

    def _chosen(self, states: Tensor, words: Tensor) -> Tensor:
        """The head's output for one word of each token, float32; with the model's batch axis, (1, tokens, 1)."""
        logits = (states.float() * self._weight[words].float()).sum(-1, keepdim=True)
        return logits if self._bias is None else logits + self._bias[words, None]

    def _try(self, output: Any, ids: Tensor) -> bool:
        """Whether the model's logits for slices of the vocabulary are slices of those for the whole vocabulary."""
        run = self._runner(output, ids, slice(0, _TRIED_TOKENS))
        whole = run(None)
        targets = whole.argmax(1)
        try:
            half = len(self._weight) // 2
            halves = (slice(0, half), slice(half, len(self._weight)))
            parts = [run(partial(self._some, words=words)) for words in halves]
            exact = run(partial(self._chosen, words=targets))
        except (RuntimeError, IndexError, TypeError, ValueError):
            return False
        joined = torch.cat(parts, 1)
        if joined.shape != whole.shape or exact.shape != (len(whole), 1):
            return False
        near = _near(self._precision) * whole.abs().amax()
        differences = ((joined - whole).abs().amax(), (exact - whole.gather(1, targets[:, None])).abs().amax())
        return all(bool(difference <= near) for difference in differences)

    def _runner(self, output: Any, ids: Tensor, tokens: slice) -> Callable[[Head | None], Tensor]:
        """The model after its decoder, for some tokens: from a head (None: the model's own) to (tokens, words)."""
        part = replace(output, last_hidden_state=output.last_hidden_state[:, tokens])

        def run(head: Head | None) -> Tensor:
            with stands_in(self._decoder, lambda *_, **__: part), stands_in(self._linear, head):
                logits: Tensor = uncached(self._model, ids[:, tokens]).logits
            return logits[0].float()

        return run


@torch.no_grad()
def find_decoder(model: Any, precision: Precision) -> Any:
    """The part of a model that computes the states that its head reads.

    It is the one that Transformers names, unless that contains or is the head: then the part of it that contains the
    embedding but not the head.

    Args:
        model: a causal language model of Transformers, in evaluation mode.
        precision: of its products.

    Returns:
        A module whose output has the states as `last_hidden_state`. None if the model's own forward, given some of
        these states, does not return their logits.
    """
    head = model.get_output_embeddings()
    found = model.get_decoder()
    if head is not None and head in found.modules():
        embedding = model.get_input_embeddings()
        found = model if found is head else found
        while found is not None and head in found.modules():
            found = next((child for child in found.children() if embedding in child.modules()), None)
    return found if found is not None and _makes_logits(model, found, precision) else None


def _makes_logits(model: Any, decoder: Any, precision: Precision) -> bool:
    """Whether a decoder's output for the last tokens alone yields the model's logits for these tokens."""
    ids = torch.arange(_TRIED_TOKENS, device=model.device)[None]
    last = slice(_TRIED_TOKENS // 2, None)
    try:
        with running(model, precision):
            expected = uncached(model, ids).logits[:, last].float()
            output = decoder(input_ids=ids, use_cache=False)
            part = replace(output, last_hidden_state=output.last_hidden_state[:, last])
            with stands_in(decoder, lambda *_, **__: part):
                logits = uncached(model, ids[:, last]).logits.float()
            near = _near(precision) * expected.abs().amax()
    except Exception:  # whatever the model's code raises
        return False
    return logits.shape == expected.shape and bool((logits - expected).abs().amax() <= near)


def _near(precision: Precision) -> float:
    """The difference between equal logits that rounding may cause, relative to the largest logit."""
    return max(4 * torch.finfo(precision.products).eps, _NEAR)


@contextmanager
def _told(model: Any) -> Iterator[None]:
    """Turn whatever a model's code raises into an `InputError`, except expected errors and the GPU's."""
    try:
        yield
    except Exception as error:
        if is_expected(error) or is_of_gpu(error):
            raise
        raise InputError(
            f"{type(model).__name__}: it returns no logits for token ids alone ({short(error, 160)}), so its loss "
            "cannot be computed; have its forward return logits as the models of Transformers do."
        ) from error


@contextmanager
def stands_in(module: nn.Module, forward: Callable[..., Any] | None) -> Iterator[None]:
    """Within this context a module runs another forward; None leaves its own."""
    if forward is None:
        yield
        return
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
