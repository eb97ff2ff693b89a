"""The weights outside a decoder's blocks: which of them its files lack, and giving them to modules that are to run.

Knows nothing of blocks.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from reprune.errors import UnsupportedModelError
from reprune.model.conversion import Layout
from reprune.model.linears import is_linear
from reprune.model.recorder import fill_with_nothing, is_outside


@final
class Outside:
    """The parameters of a model but for those of its blocks, as a checkpoint has them."""

    def __init__(self, name: str, model: Any, blocks_path: str, layout: Layout) -> None:
        """`model` has its parameters on the meta device, and its list of blocks at `blocks_path`."""
        self._name = name
        self._model = model
        self._blocks_path = blocks_path
        self._layout = layout
        self.aliases = _aliases(model)

    @cached_property
    def lacking(self) -> list[str]:
        """Parameters that the checkpoint does not hold, but for those that Transformers makes itself."""
        made = [re.compile(one) for one in getattr(self._model, "_keys_to_ignore_on_load_missing", None) or ()]
        return [
            name
            for name, _ in self._model.named_parameters(remove_duplicate=False)
            if is_outside(name, (self._blocks_path,))
            and self._held(name) is None
            and not any(pattern.search(name) for pattern in made)
        ]

    def check(self) -> None:
        """Raise `UnsupportedModelError` where the checkpoint holds one that is no floats, or of another shape.

        None could load the result.
        """
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            if is_outside(name, (self._blocks_path,)) and name in self._layout.of_parameter:
                self._layout.check(name, self._layout.of_parameter[name], parameter)

    def fill(
        self,
        path: str,
        module: nn.Module,
        ids: Tensor | None,
        device: torch.device | None = None,
        products: torch.dtype = torch.float32,
    ) -> None:
        """Load the parameters of a module outside the blocks; of the embedding, the rows of these ids only.

        They go to a device, by default the CPU; the matrix of a linear in the dtype of products.

        Raises:
            UnsupportedModelError: the checkpoint lacks one, or has another in its place.
        """
        prefix = f"{path}." if path else ""
        for key, buffer in module.named_buffers(recurse=False):
            if prefix + key in self._layout.of_parameter:
                buffer.copy_(self._tensor(prefix + key, buffer))
        for key, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta and ids is None:
                if device is not None and parameter.device != device:  # loaded before it was known where it will run
                    setattr(module, key, nn.Parameter(parameter.to(device), requires_grad=False))
                continue
            source = self._tensor(prefix + key, parameter)
            if parameter.is_meta:
                # Fresh pages take no memory until they are written: an embedding takes that of the rows in use.
                dtype = products if is_linear(module) and key == "weight" else torch.float32
                parameter = nn.Parameter(torch.empty(source.shape, dtype=dtype, device=device), requires_grad=False)
                setattr(module, key, parameter)
            if ids is None or key != "weight":
                parameter.copy_(source)
            else:
                rows = ids.unique()
                parameter[rows] = source[rows].float()

    def fill_with_nothing(self, path: str, module: nn.Module, ids: Tensor | None) -> None:
        """As `fill`, but for the values: refuses what that would, and reads nothing."""
        for key, parameter in module.named_parameters(recurse=False):
            self._checked(f"{path}.{key}" if path else key, parameter)
        fill_with_nothing(path, module, ids)

    def _tensor(self, name: str, wanted: Tensor) -> Tensor:
        """A parameter or buffer, or what it is tied to, as the checkpoint has it."""
        held = self._checked(name, wanted)
        return self._layout.read(self._layout.of_parameter[held])[held]

    def _checked(self, name: str, wanted: Tensor) -> str:
        """What the checkpoint holds it as."""
        held = self._held(name)
        if held is None:
            raise UnsupportedModelError(
                f"{self._name}: the tensor {name}, which is needed, is not in its safetensors files; they may be "
                "incomplete, download the model again."
            )
        self._layout.check(held, self._layout.of_parameter[held], wanted)
        return held

    def _held(self, name: str) -> str | None:
        """The parameter or buffer itself, or one that it is tied to: that which the checkpoint has."""
        return next((one for one in (name, *self.aliases.get(name, ())) if one in self._layout.of_parameter), None)


def _aliases(model: Any) -> dict[str, tuple[str, ...]]:
    """By the name of each parameter that is tied to others: those others' names."""
    names: dict[Any, list[str]] = {}
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(tied.get(name, name), []).append(name)
        names.setdefault(id(parameter), []).append(name)
    found: dict[str, tuple[str, ...]] = {}
    for alike in names.values():
        for name in alike:
            found[name] = (*found.get(name, ()), *(other for other in alike if other != name))
    return {name: others for name, others in found.items() if others}
