"""The weight files of a Hub model that are not on this machine: only their headers are read, by a few requests."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import final

from reprune.errors import InputError, short
from reprune.model.hub import not_fetched

Listed = tuple[str, str, tuple[int, ...], int]
"""What a header says of a tensor: its name, its dtype as safetensors calls it, its shape and its bytes."""

_FILES_AT_A_TIME = 8


@final
@dataclass(frozen=True)
class Undownloaded:
    """Files of one commit of a Hub model that were not downloaded."""

    model: str
    revision: str | None  # as the user gave it
    commit: str
    names: frozenset[str]

    def tensors(self, names: Sequence[str]) -> list[list[Listed]]:
        """What the header of each of these files says of its tensors.

        Raises:
            InputError: the Hub does not answer, or a file's header cannot be read.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import SafetensorsParsingError

        def read(name: str) -> list[Listed]:
            try:
                found = HfApi().parse_safetensors_file_metadata(self.model, name, revision=self.commit)
                return [
                    (key, one.dtype, tuple(one.shape), one.data_offsets[1] - one.data_offsets[0])
                    for key, one in found.tensors.items()
                ]
            except SafetensorsParsingError as error:
                raise InputError(
                    f"{self.model}: {name} is not a safetensors file ({short(error)}); give a revision in which it "
                    f"is whole ({self.model}@REVISION), or another model."
                ) from None
            except Exception as error:  # huggingface_hub's own errors, its HTTP client's, OSErrors
                raise InputError(not_fetched(error, self.model, self.revision)) from None

        with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
            return list(pool.map(read, names))
