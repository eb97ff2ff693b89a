"""A model for lm-eval: log-likelihoods of continuations, without computing what no answer needs.

Tokens, BOS and truncation are the harness's own. The work differs: a context that several continuations share is run
once, and the head, which may be most of a model, is applied only where a continuation is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, final

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from reprune.doors.prepare import check_ids
from reprune.errors import InputError, NumericalError
from reprune.model.bare import longest_of
from reprune.model.block import Precision
from reprune.model.head import find_decoder, stands_in
from reprune.model.sampler import longrope_borders
from reprune.model.uncached import cache_argument, uncached
from reprune.model.whole import running
from reprune.model.widened import widen_after_, widened

_BATCH_TOKENS = 2**11  # tokens run at a time
_SMALL_BATCH = 2**8  # tokens; below this, more are nearly free, so padding costs nothing
_WASTE = 1.1  # the most tokens of a larger batch, over those of its groups one by one
_LOGIT_ELEMENTS = 2**25  # logits held at a time: 128 MiB in float32
_TOLERANCE = 1e-3  # relative, of states in float32
_TRIED_TOKENS = (4, 8)  # lengths of two sequences, the longer of which begins with the shorter

Tokens = tuple[int, ...]


@final
class _Group:
    """The continuations of one context, each with its request's number, and the fewest tails that predict them all.

    A tail is what is run after the context: a continuation without its last token.
    """

    def __init__(self, context: Tokens, continuations: Iterable[tuple[int, Tokens]]) -> None:
        self.context = context
        self.continuations = sorted(continuations, key=lambda each: -len(each[1]))
        self.tails = self._lay_out()[0]
        self.longest = len(context) + max(map(len, self.tails))  # tokens that are run for one of its sequences

    def places(self) -> dict[Tokens, tuple[int, int]]:
        """By the beginning of a continuation: the tail and position (with the context) that predict what follows."""
        return self._lay_out()[1]  # computed each time: kept for all groups, they would be large

    def _lay_out(self) -> tuple[list[Tokens], dict[Tokens, tuple[int, int]]]:
        tails: list[Tokens] = []
        places: dict[Tokens, tuple[int, int]] = {}
        for _, continuation in self.continuations:
            if continuation[:-1] not in places:
                tails.append(continuation[:-1])
            for end in range(len(continuation)):
                places.setdefault(continuation[:end], (len(tails) - 1, len(self.context) + end - 1))
        return tails, places


@final
class Likelihoods(HFLM):  # type: ignore[misc]  # lm-eval has no type information
    """The harness's model class, with its loop over requests replaced.

    `cut` counts the requests so far that were longer than the model takes, and lost the start of their context.
    `exact` says that products are in float32 whatever was asked for, as no decoder was found.
    """

    def __init__(
        self, model: Any, tokenizer: Any, precision: Precision, progress: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        """`model` is on its device, in evaluation mode; its head may be made float32 in place.

        `progress` is called with the number of requests that are done, and of all.
        """
        self._longest = longest_of(model)
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1)
        self.cut = 0
        self._precision = precision
        self._progress = progress
        with widened(model):
            self._decoder = find_decoder(model, Precision())
        self.exact = self._decoder is None
        if self._decoder is not None:
            widen_after_(model, self._decoder)
        self._kept_name = None if self._decoder is None else cache_argument(self._decoder)
        self._borders = longrope_borders(model)
        self._tried = False
        self._pads = self._decoder is not None and self._can_pad()

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **_: Any) -> None:
        """Take the given tokenizer, of any class; the harness's own method refuses those of mistral-common."""
        self.tokenizer = tokenizer

    @property
    def max_length(self) -> int:
        """The harness's, but at most what the configuration says under names that the harness does not read."""
        found = int(super().max_length)
        found = found if found > 0 else self._DEFAULT_MAX_LENGTH  # XLNet's is -1: no limit
        return min(found, self._longest or found)

    @property
    def prefix_token_id(self) -> int:
        """The token in place of an empty context: BOS, or else EOS."""
        if self._names_no_prefix():
            raise InputError(
                f"{self.tokenizer.name_or_path}: its tokenizer has neither a bos_token nor an eos_token, one of which "
                "must begin a text that has no context; name one in tokenizer_config.json."
            )
        return int(super().prefix_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """The harness's, except for a tokenizer without BOS and EOS, as it checks whether a text begins with them."""
        if add_special_tokens is None and self._names_no_prefix():
            return list(self.tokenizer.encode(string))
        return list(super().tok_encode(string, add_special_tokens, **options))

    def _names_no_prefix(self) -> bool:
        return self.tokenizer.bos_token_id is None and self.tokenizer.eos_token_id is None

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """For each request: its continuation's log-likelihood, and whether each of its tokens is the likeliest."""
        del disable_tqdm, override_bs
        largest = max((token for _, *parts in requests for token in chain(*parts)), default=0)
        rows = len(self.model.get_input_embeddings().weight)
        check_ids(Path(self.tokenizer.name_or_path).name, torch.tensor(largest), rows)
        if self._decoder is None:
            return self._whole(requests)
        by_context: dict[tuple[Tokens, int], list[tuple[int, Tokens]]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            fitting = self._fitting(context, continuation)
            side = self._side(len(fitting) + len(continuation) - 1)
            by_context.setdefault((fitting, side), []).append((number, tuple(continuation)))
        answers: dict[int, tuple[float, bool]] = {}
        groups = [
            _Group(context, part)
            for (context, _), each in by_context.items()
            for part in ([each] if self._pads else [[one] for one in each])
        ]
        with running(self.model, self._precision):  # one context for all batches, so that each weight is converted once
            for batch in self._batches(groups):
                answers.update(self._answers(batch))
                self._progress(len(answers), len(requests))
        return [answers[number] for number in range(len(requests))]

    def _whole(self, requests: Sequence[tuple[Any, list[int], list[int]]]) -> list[tuple[float, bool]]:
        """The same if no decoder was found: as the harness does it, in float32, one by one."""
        for _, context, continuation in requests:
            self._fitting(context, continuation)
        answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(list(requests), disable_tqdm=True)
        for value, _ in answers:
            _check(value)
        self._progress(len(requests), len(requests))
        return answers

    def _fitting(self, context: list[int], continuation: list[int]) -> Tokens:
        """The context that fits before a continuation; as in the harness, its start is cut off if it is too long."""
        if not 0 < len(continuation) <= self.max_length:
            raise InputError(
                f"{self.tokenizer.name_or_path}: a continuation has {len(continuation)} tokens, but the model takes 1 "
                f"to {self.max_length}; leave the task out."
            )
        room = self.max_length + 1 - len(continuation)  # the last token is not run
        self.cut += len(context) > room
        return tuple(context[-room:])

    def _batches(self, groups: list[_Group]) -> Iterator[list[_Group]]:
        """Batches of groups with contexts of similar length, the longest first, as large as is worth their padding."""
        groups.sort(key=lambda group: (len(group.tails) > 1, len(group.context)), reverse=True)
        batch: list[_Group] = []
        least = 0  # tokens that the groups of the batch would run one by one
        for group in groups:
            least += self._cost([group])
            room = max(_WASTE * least, _SMALL_BATCH) if self._pads else least
            apart = bool(batch) and self._side(batch[0].longest) != self._side(group.longest)
            if batch and (apart or self._cost([*batch, group]) > min(room, _BATCH_TOKENS)):
                yield batch
                batch, least = [], self._cost([group])
            batch.append(group)
        if batch:
            yield batch

    def _cost(self, batch: list[_Group]) -> int:
        """Tokens to run for a batch, padding included."""
        shared = self._shared(batch)
        tails = sum(len(group.tails) for group in batch)
        return len(batch) * shared + tails * (max(group.longest for group in batch) - shared)

    def _shared(self, batch: list[_Group]) -> int:
        """How many tokens of each group's context to run only once.

        This is less than the shortest context, so that kept keys and values hold no padding, and all predictions are
        made by the tokens that are run after them.
        """
        worth = self._kept_name is not None and any(len(group.tails) > 1 for group in batch)
        shared = min(len(group.context) for group in batch) - 1
        return shared if worth and self._side(shared) == self._side(batch[0].longest) else 0

    def _side(self, tokens: int) -> int:
        """How many borders of LongRoPE a text of that length is beyond.

        Texts on different sides share neither a batch, in which the longest decides for all, nor kept keys.
        """
        return sum(tokens > border for border in self._borders)

    def _answers(self, batch: list[_Group]) -> Iterator[tuple[int, tuple[float, bool]]]:
        """The number of each request of a batch, and its answer."""
        shared = self._shared(batch)
        if shared and not self._tried:
            self._tried = True
            if not self._can_share(batch[0], shared):
                self._kept_name = None
            shared = self._shared(batch)
        output = self._run(batch, shared)
        first = 0  # the row of the batch with which a group begins
        rows: list[int] = []  # of the states that predict tokens
        columns: list[int] = []
        asked: list[tuple[int, int]] = []  # (which of these states, which token)
        for group in batch:
            places = group.places()
            index = {before: len(rows) + number for number, before in enumerate(places)}
            rows += [first + tail for tail, _ in places.values()]
            columns += [position - shared for _, position in places.values()]
            for _, continuation in group.continuations:
                asked += [(index[continuation[:end]], token) for end, token in enumerate(continuation)]
            first += len(group.tails)
        likelihoods, likeliest = self._predicted(output, output.last_hidden_state[rows, columns], asked)
        end = 0
        for number, continuation in (each for group in batch for each in group.continuations):
            begin, end = end, end + len(continuation)
            value = sum(likelihoods[begin:end])
            _check(value)
            yield number, (value, all(likeliest[begin:end]))

    def _run(self, batch: list[_Group], shared: int) -> Any:
        """The decoder's output for all sequences of a batch, from token `shared` on; padded on the right with zeros.

        If no token sees what follows it, padding needs no mask; otherwise there is no padding.
        """
        options: dict[str, Any] = {"use_cache": False}
        if shared:
            assert self._kept_name is not None
            kept: Any = DynamicCache(config=self.config)
            options = {"use_cache": True, self._kept_name: kept}
            contexts = torch.tensor([group.context[:shared] for group in batch], device=self.device)
            self._decoder(input_ids=contexts, **options)
            owners = [number for number, group in enumerate(batch) for _ in group.tails]
            kept.reorder_cache(torch.tensor(owners, device=self.device))
        sequences = [torch.tensor((*group.context, *tail)[shared:]) for group in batch for tail in group.tails]
        return self._decoder(input_ids=pad_sequence(sequences, batch_first=True).to(self.device), **options)

    @torch.no_grad()
    def _can_pad(self) -> bool:
        """Whether this decoder gives tokens the same states whatever follows them, including zeros."""
        short, long = (_Group(tuple(range(1, 1 + length)), [(0, (0,))]) for length in _TRIED_TOKENS)
        with Precision().on(self.device), widened(self.model):
            try:
                alone, both = (self._run(batch, 0).last_hidden_state for batch in ([short], [short, long]))
            except Exception:  # the decoder's code may raise anything
                return False
        return bool(((both[:, : alone.shape[1]] - alone).norm(dim=(1, 2)) <= _TOLERANCE * alone.norm()).all())

    def _can_share(self, group: _Group, shared: int) -> bool:
        """Whether this decoder gives the same states if it is run after `shared` kept keys and values as in one go."""
        with torch.autocast(self.device.type, enabled=False), widened(self.model):
            try:
                after = self._run([group], shared).last_hidden_state
            except Exception:  # the decoder's code may raise anything
                return False
            whole = self._run([group], 0).last_hidden_state[:, shared:]
        return after.shape == whole.shape and bool((after - whole).norm() <= _TOLERANCE * whole.norm())

    def _predicted(self, output: Any, states: Tensor, asked: list[tuple[int, int]]) -> tuple[list[float], list[bool]]:
        """For each (place, token) asked: the token's log-likelihood, and whether it is the likeliest.

        `states` is (places, hidden). The model's own forward applies its head, scaling and caps, slice by slice, in
        float32 whatever the precision: bfloat16 logits are so coarse that two short answers would often tie.
        """
        places, tokens = torch.tensor(asked, device=self.device).unbind(1)
        likelihoods = torch.empty(len(asked), device=self.device)
        likeliest = torch.empty(len(asked), dtype=torch.bool, device=self.device)
        size = max(_LOGIT_ELEMENTS // max(int(self.config.get_text_config().vocab_size), 1), 1)
        for first in range(0, len(states), size):
            part = replace(output, last_hidden_state=states[None, first : first + size].float())
            ids = torch.zeros(part.last_hidden_state.shape[:2], dtype=torch.long, device=self.device)
            with (
                stands_in(self._decoder, lambda *_, part=part, **__: part),
                torch.autocast(self.device.type, enabled=False),
            ):
                logits = uncached(self.model, ids).logits[0].log_softmax(-1)
            (here,) = torch.where((places >= first) & (places < first + size))
            likelihoods[here] = logits[places[here] - first, tokens[here]]
            likeliest[here] = logits.argmax(-1)[places[here] - first] == tokens[here]
        return likelihoods.tolist(), likeliest.tolist()


def _check(value: float) -> None:
    if math.isnan(value):
        raise NumericalError("the model's log-likelihoods are NaN; its weights are damaged")
