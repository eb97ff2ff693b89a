"""An author in this process: a whole model that writes many texts at a time. Knows tokens, judges no text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch

from reprune.doors.devices import DTYPES
from reprune.errors import InputError
from reprune.math.seeds import seed_of
from reprune.model.block import Precision
from reprune.model.sampler import Sampler
from reprune.model.whole import load_model
from reprune.planning.generation.firsts import signs
from reprune.planning.generation.rounds import Author, Ids, Written
from reprune.planning.generation.settings import PREFIX, Generation
from reprune.planning.tokens import beginning


@final
class LocalAuthor(Author):
    """Writes with the model of a model folder."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        settings: Generation,
        device: str,
        precision: str,
        trust_remote_code: bool = False,
    ) -> None:
        """Load the model; raises `InputError` if it cannot be loaded, or has no usable cache from token to token."""
        products = Precision(DTYPES[precision])
        model = load_model(folder, torch.device(device), trust_remote_code, products)
        self._tokenizer = tokenizer
        self._settings = settings
        self._device = torch.device(device)
        self._sampler = Sampler(model, products)
        self._start = beginning(tokenizer)
        self._ends = ends_of(model, tokenizer)
        self.rows = len(model.get_input_embeddings().weight)

    def begin(self, firsts: Sequence[int]) -> list[tuple[str, Ids]]:
        ids = self._tensor([(first,) for first in firsts])
        following = self._sampler.greedily(ids, PREFIX - 1).tolist()
        prefixes: list[Ids] = [(first, *more) for first, more in zip(firsts, following, strict=True)]
        return [(self._text(prefix), prefix) for prefix in prefixes]

    def write(self, prefixes: Sequence[Ids], number: int) -> list[Written]:
        settings = self._settings
        seed = seed_of(settings.seed, number)
        found = self._sampler.sample(
            self._tensor(prefixes),
            settings.length - PREFIX,
            settings.choice,
            self._ends,
            torch.Generator().manual_seed(seed),
        )
        return [
            Written(
                self._text((*prefix, *one.ids)),
                (*prefix, *one.ids),
                one.log_probability / len(one.ids) if one.ids else None,
                one.ended,
            )
            for prefix, one in zip(prefixes, found, strict=True)
        ]

    def _tensor(self, rows: Sequence[Ids]) -> torch.Tensor:
        return torch.tensor([[*self._start, *row] for row in rows], device=self._device)

    def _text(self, ids: Ids) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def ends_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text: those of the model's own configuration, and all that are never text.

    Raises:
        InputError: the configuration names something that is no token.
    """
    found = getattr(model.generation_config, "eos_token_id", None)
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(one, int) and abs(one) < 2**63 for one in ends):
        raise InputError(
            f"{type(model).__name__}: its eos_token_id is {found!r:.80}; expected the number of a token, or a list of "
            "them, in its generation_config.json."
        )
    return signs(tokenizer) | set(ends)
