"""Continues texts with a whole model, many at a time and with its cache of keys and values. Knows tokens, not texts.

On a CPU a step of the decoder and its head takes little longer for many rows than for one, as all weights are read in
both cases. Rows that have ended are removed from the batch and the cache, so that the others run faster.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from transformers import DynamicCache, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from reprune.errors import InputError, NumericalError, is_expected, is_of_gpu, short
from reprune.model.block import Precision
from reprune.model.uncached import cache_argument
from reprune.model.whole import running

_LOGITS = 2**24  # elements handled at a time
_PART = 512  # words whose weights are summed before one of them is chosen
_EDGE = 1e-12  # a relative distance from the end of a distribution
_TRIED, _LENGTH = 4, 6  # rows and tokens that show whether a model's cache can be used
_COLDEST = 1e-30  # the least temperature: it draws the likeliest word; a lower one would overflow the logits
_OFF = 0.05  # relative error of logits: in half precision about 0.01 is usual, with or without a cache


@final
@dataclass(frozen=True)
class Continuation:
    """What a model wrote after the tokens that it was given."""

    ids: tuple[int, ...]  # without the given tokens and the token that ended it
    log_probability: float  # natural logarithm, summed over `ids`, under the model's whole distribution
    ended: bool  # by an end token; otherwise by its length


@final
@dataclass(frozen=True)
class Choice:
    """Which words the next one is drawn from, by Transformers' definitions of the settings."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def cut(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The logits (rows, words) to draw from; minus infinity for excluded words."""
        if self.temperature != 1.0:
            logits = TemperatureLogitsWarper(max(self.temperature, _COLDEST))(ids, logits)
        if self.top_k is not None:
            logits = TopKLogitsWarper(self.top_k)(ids, logits)
        if self.top_p is not None:
            logits = TopPLogitsWarper(self.top_p)(ids, logits)
        return logits


@final
class Sampler:
    """Writes with one model, which is in memory and in evaluation mode."""

    def __init__(self, model: Any, precision: Precision) -> None:
        """Raises `InputError` if the model has no cache from token to token, or one that cannot be used."""
        self._model = model
        self._precision = precision
        kept = cache_argument(model)
        if kept is None:
            raise InputError(
                f"{type(model).__name__} has no cache of keys and values, so it would write too slowly; serve it and "
                "give --endpoint URL."
            )
        self._kept = kept
        last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._more: dict[str, Any] = {"logits_to_keep": 1} if last else {}
        self._borders = longrope_borders(model)
        self._check_cache()

    @torch.no_grad()
    def _check_cache(self) -> None:
        """Raise `InputError` unless rows, once others are removed, continue with the cache as they do without it."""
        embedding = self._model.get_input_embeddings().weight
        ids = torch.arange(_TRIED * _LENGTH, device=embedding.device) * 7919 % max(len(embedding) - 3, 1) + 3
        ids, stay = ids.view(_TRIED, _LENGTH), torch.arange(1, _TRIED, device=embedding.device)
        try:
            with running(self._model, self._precision):
                whole = self._last_logits(ids[stay])
                cache = self._new_cache()
                self._last_logits(ids[:, :-1], cache)
                cache.reorder_cache(stay)
                found = self._last_logits(ids[stay, -1:], cache)
            # Rounding may route one row to other experts; if the cache is at fault, all rows are off.
            off = float(((found - whole).norm(dim=1) / (whole - whole.mean(1, keepdim=True)).norm(dim=1)).min())
            reason = f"next tokens are {off:.0%} off" if off > _OFF else None
        except Exception as error:  # a model may raise nearly anything if the cache is not what it expects
            if is_expected(error) or is_of_gpu(error):
                raise
            reason = short(error, 160)
        if reason is not None:
            raise InputError(
                f"{type(self._model).__name__} does not write the same with its cache, many rows at a time, as without "
                f"it ({reason}); serve it and give --endpoint URL."
            )

    def _new_cache(self) -> Any:
        return DynamicCache(config=self._model.config)

    def _last_logits(self, ids: Tensor, cache: Any | None = None) -> Tensor:
        """The logits (rows, words) after rows of tokens (rows, tokens), which continue those in a cache if given."""
        kept = {"use_cache": False} if cache is None else {self._kept: cache, "use_cache": True}
        logits: Tensor = self._model(input_ids=ids, **kept, **self._more).logits[:, -1]
        return logits

    @torch.no_grad()
    def greedily(self, ids: Tensor, steps: int) -> Tensor:
        """The greedy continuation of rows of tokens (rows, tokens) by `steps` tokens; returns (rows, steps)."""
        written: list[Tensor] = []

        def likeliest(logits: Tensor) -> tuple[Tensor, None]:
            written.append(torch.cat([part.argmax(1) for part in _parts(logits)]))
            return written[-1], None

        self._write(ids, steps, likeliest)
        return torch.stack(written, 1)

    @torch.no_grad()
    def sample(
        self,
        ids: Tensor,
        steps: int,
        choice: Choice,
        ends: Collection[int],
        generator: torch.Generator,
    ) -> list[Continuation]:
        """Draw a continuation of each row of tokens (rows, tokens).

        Args:
            ids: int64, on the model's device.
            steps: the most tokens to write.
            choice: which words to draw from.
            ends: tokens that end a text.
            generator: of the CPU; decides what is drawn.
        """
        rows, words, device = len(ids), [list[int]() for _ in ids], ids.device
        sums, ended = [0.0] * rows, [False] * rows
        left = torch.arange(rows)
        stops = torch.tensor(sorted(ends), device=device)

        def drawn(logits: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal left
            uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64).to(device)
            parts = zip(_parts(logits), uniform.split(_rows(logits)), strict=True)
            found = [draw(part, part_uniform, choice) for part, part_uniform in parts]
            tokens = torch.cat([token for token, _ in found])
            logarithms = torch.cat([logarithm for _, logarithm in found])
            over = torch.isin(tokens, stops).cpu()
            # Read from a GPU at once, not word by word.
            each = zip(left.tolist(), tokens.tolist(), logarithms.tolist(), over.tolist(), strict=True)
            for row, token, logarithm, ends_here in each:
                if ends_here:
                    ended[row] = True
                else:
                    words[row].append(token)
                    sums[row] += logarithm
            left = left[~over]
            return tokens, ~over

        self._write(ids, steps, drawn)
        return [Continuation(tuple(words[row]), sums[row], ended[row]) for row in range(rows)]

    def _write(
        self,
        ids: Tensor,
        steps: int,
        choose: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    ) -> None:
        """Run the model `steps` times, or until all rows have ended.

        Args:
            ids: the tokens to continue (rows, tokens).
            steps: the most tokens to write.
            choose: from logits (rows, words) to the next tokens, (rows,), and which rows go on, (rows,) or None for
                all.
        """
        cache = self._new_cache()
        text = given = ids
        with running(self._model, self._precision):
            for step in range(steps):
                logits = self._last_logits(given, cache)
                if not bool(torch.isfinite(logits.amax(1)).all()):
                    raise NumericalError("the model's logits are not finite; nothing can be drawn from them")
                tokens, going_on = choose(logits)
                if step + 1 == steps:
                    return
                if going_on is not None and not bool(going_on.all()):
                    stay = going_on.nonzero()[:, 0].to(tokens.device)
                    if not len(stay):
                        return
                    text, tokens = text[stay], tokens[stay]
                    cache.reorder_cache(stay)  # also selects rows; caches of recurrent states have it too
                given = tokens[:, None]
                text = torch.cat([text, given], 1)
                if text.shape[1] - 1 in self._borders:  # the keys in the cache are those of a shorter text
                    cache, given = self._new_cache(), text


def longrope_borders(model: Any) -> set[int]:
    """The lengths beyond which LongRoPE turns all of a text's keys otherwise, from the first token on."""
    rope = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    each = [one for one in (rope, *rope.values()) if isinstance(one, dict)]  # in some models one for each type of block
    return {one["original_max_position_embeddings"] for one in each if one.get("rope_type") == "longrope"}


def draw(logits: Tensor, uniform: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """Draw one word for each row by inverting its distribution function, without sorting the vocabulary.

    Args:
        logits: (rows, words).
        uniform: (rows,), float64 in [0, 1): where in the distribution to draw.
        choice: which words to draw from.

    Returns:
        The words (rows,), int64, and their log-probabilities under the whole distribution (rows,), float64.
    """
    logits = logits.float()
    whole = logits.logsumexp(1)
    kept = choice.cut(torch.empty(len(logits), 0, dtype=torch.long), logits)
    weights = (kept - kept.amax(1, keepdim=True)).exp_()  # (rows, words)
    padding = -weights.shape[1] % _PART
    weights = torch.nn.functional.pad(weights, (0, padding)).view(len(weights), -1, _PART)  # (rows, parts, words)
    upto = weights.sum(2).double().cumsum(1)  # (rows, parts)
    place = (uniform.clamp(max=1 - _EDGE) * upto[:, -1])[:, None]  # before the end, so in a part with weight
    part = torch.searchsorted(upto, place, right=True)  # (rows, 1)
    inside = weights[torch.arange(len(weights), device=weights.device), part[:, 0]].double().cumsum(1)
    before = torch.where(part > 0, upto.gather(1, (part - 1).clamp(min=0)), 0.0)
    # A part's sums in float32 and in float64 differ by rounding: a place beyond its last word means its last word.
    rest = torch.minimum(place - before, inside[:, -1:] * (1 - _EDGE))
    words = part * _PART + torch.searchsorted(inside, rest, right=True)
    return words[:, 0], logits.gather(1, words)[:, 0].double() - whole.double()


def _rows(logits: Tensor) -> int:
    return max(_LOGITS // logits.shape[1], 1)


def _parts(logits: Tensor) -> tuple[Tensor, ...]:
    """The logits in parts of some rows, so that what is computed from a part takes little memory."""
    parts: tuple[Tensor, ...] = logits.split(_rows(logits))
    return parts
