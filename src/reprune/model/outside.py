"""The weights outside a decoder's blocks: finds those that its files lack, and loads them into modules to be run.

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
    """The parameters of a model outside its blocks, as stored in a checkpoint."""

    def __init__(self, name: str, model: Any, blocks_path: str, layout: Layout) -> None:
        """`model` has its parameters on the meta device, and its list of blocks at `blocks_path`."""
        self._name = name
        self._model = model
        self._blocks_path = blocks_path
        self._layout = layout
        self.aliases = _aliases(model)

    @cached_property
    def lacking(self) -> list[str]:
        """Parameters that the checkpoint does not hold, except those that Transformers makes itself."""
        made = [re.compile(one) for one in getattr(self._model, "_keys_to_ignore_on_load_missing", None) or ()]
        return [
            name
            for name, _ in self._model.named_parameters(remove_duplicate=False)
            if is_outside(name, (self._blocks_path,))
            and self._held(name) is None
            and not any(pattern.search(name) for pattern in made)
        ]

    def check(self) -> None:
        """Raise `UnsupportedModelError` if the checkpoint holds one that is not floats, or has another shape.

        Nothing could load the resulting model.
        """
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            if is_outside(name, (self._blocks_path,)) and name in self._layout.of_parameter:
                self._layout.check(name, parameter)

    def fill(
        self,
        path: str,
        module: nn.Module,
        ids: Tensor | None,
        device: torch.device | None = None,
        products: torch.dtype = torch.float32,
    ) -> None:
        """Load the parameters of a module outside the blocks.

        Args:
            path: of the module.
            module: takes the parameters.
            ids: for a table that they are looked up in: only these rows are loaded; None elsewhere.
            device: of the parameters; the CPU by default.
            products: the dtype of a linear's weight; the others are float32.

        Raises:
            UnsupportedModelError: the checkpoint lacks one, or it is not floats or has another shape.
        """
        prefix = f"{path}." if path else ""
        for key, buffer in module.named_buffers(recurse=False):
            if prefix + key in self._layout.of_parameter:
                buffer.copy_(self._tensor(prefix + key, buffer))
        for key, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta and ids is None:
                if device is not None and parameter.device != device:  # loaded earlier, for the CPU
                    setattr(module, key, nn.Parameter(parameter.to(device), requires_grad=False))
                continue
            source = self._tensor(prefix + key, parameter)
            if parameter.is_meta:
                # Fresh pages take no memory until they are written, so a table takes only that of its used rows.
                dtype = products if is_linear(module) and key == "weight" else torch.float32
                parameter = nn.Parameter(torch.empty(source.shape, dtype=dtype, device=device), requires_grad=False)
                setattr(module, key, parameter)
            if ids is None or key != "weight":
                parameter.copy_(source)
            else:
                rows = ids.unique()
                parameter[rows] = source[rows].float()

    def fill_with_nothing(self, path: str, module: nn.Module, ids: Tensor | None) -> None:
        """Like `fill`, but without values: raises where `fill` would, and reads nothing."""
        for key, parameter in module.named_parameters(recurse=False):
            self._checked(f"{path}.{key}" if path else key, parameter)
        fill_with_nothing(path, module, ids)

    def _tensor(self, name: str, wanted: Tensor) -> Tensor:
        """A parameter or buffer, or the one that it is tied to, as stored in the checkpoint."""
        return self._layout.read(self._checked(name, wanted))

    def _checked(self, name: str, wanted: Tensor) -> str:
        """The name under which a parameter is held (`_held`), once its dtype and shape are checked."""
        held = self._held(name)
        if held is None:
            raise UnsupportedModelError(
                f"{self._name}: the tensor {name}, which is needed, is not in its safetensors files; they may be "
                "incomplete, download the model again."
            )
        self._layout.check(held, wanted)
        return held

    def _held(self, name: str) -> str | None:
        """The parameter or buffer, or one that it is tied to, whichever the checkpoint holds; None if neither."""
        return next((one for one in (name, *self.aliases.get(name, ())) if one in self._layout.of_parameter), None)


def _aliases(model: Any) -> dict[str, tuple[str, ...]]:
    """For the name of each tied parameter, the names of those that it is tied to."""
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
