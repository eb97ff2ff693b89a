"""Converts a checkpoint's tensors to a model's parameters and back: by name, or by Transformers' conversion rules.

Many checkpoints name or split their tensors differently than Transformers does: each expert of Mixtral is three
matrices on disk, while in the model all experts together are two parameters. The rules are Transformers' own, which it
applies on loading; here they are applied to a few tensors at a time, and reversed for saving.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from reprune.errors import UnsupportedModelError, short
from reprune.model.checkpoint import FLOATS, Checkpoint, no_floats

EMPTY = (
    "it is empty, as when a process that holds only a part of the weights (DeepSpeed ZeRO-3, FSDP) saves a model: have "
    "the trainer gather the weights, and save the model again."
)
"""The end of a message: why a stored tensor has no elements, and what to do."""


@dataclass
class Conversion:
    """Some stored tensors and the parameters that are made of them and of nothing else."""

    stored: list[str] = field(default_factory=list)  # names in the checkpoint
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of the parameters, by their names in the model
    rule: Any = None  # Transformers' converter; None if one tensor is one parameter, unchanged
    between: dict[str, str] = field(default_factory=dict)  # by stored name: its name in the rule
    patterns: dict[str, str] = field(default_factory=dict)  # by stored name: the rule's pattern that matches it
    first: str = ""  # the parameter that the rule names its results after

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters in the model."""
        return list(self.shapes)


@final
class Layout:
    """All conversions of a checkpoint."""

    def __init__(self, model: Any, checkpoint: Checkpoint) -> None:
        """`model` has its parameters on the meta device; raises `UnsupportedModelError` if a conversion fails."""
        self._model = model
        self._checkpoint = checkpoint
        self.of_parameter: dict[str, Conversion] = {}
        self._of_stored: dict[str, Conversion] = {}
        for conversion in self._conversions():
            if conversion.rule is not None:
                self._try(conversion)
            for name in conversion.parameters:
                self.of_parameter[name] = conversion
            for name in conversion.stored:
                self._of_stored[name] = conversion

    @property
    def used(self) -> list[str]:
        """The names of the checkpoint's tensors that the model uses; nothing reads the others, such as old buffers."""
        return [name for name in self._checkpoint.entries if name in self._of_stored]

    def parameters_of(self, stored: str) -> list[str]:
        """The model's parameters that a tensor of the checkpoint goes into; none if the model does not use it."""
        found = self._of_stored.get(stored)
        return [] if found is None else found.parameters

    def load(self, conversion: Conversion, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters that a conversion makes, by their names in the model, in the dtypes of the stored tensors."""
        if conversion.rule is None:
            return {conversion.parameters[0]: stored[conversion.stored[0]]}
        rule = deepcopy(conversion.rule)
        for name in conversion.stored:
            rule.add_tensor(conversion.first, name, conversion.patterns[name], stored[name])
        return _singly(rule.convert(conversion.first, model=self._model, config=self._model.config))

    def read(self, name: str) -> Tensor:
        """A parameter that the checkpoint holds, in the dtype of the stored tensors."""
        conversion = self.of_parameter[name]
        return self.load(conversion, {stored: self._checkpoint.tensor(stored) for stored in conversion.stored})[name]

    def check(self, name: str, wanted: Tensor) -> None:
        """Raise `UnsupportedModelError` unless a parameter has the shape of `wanted`, and a weight is of floats."""
        conversion = self.of_parameter[name]
        if isinstance(wanted, nn.Parameter) and wanted.is_floating_point():
            for stored in conversion.stored:
                if (dtype := self._checkpoint.entries[stored].dtype) not in FLOATS:
                    raise no_floats(self._checkpoint.name, stored, dtype)
        found, shape = conversion.shapes[name], tuple(wanted.shape)
        if found != shape:
            raise UnsupportedModelError(
                f"{self._checkpoint.name}: the tensor {conversion.stored[0]} has the shape {list(found)}, but "
                f"by config.json it should have {list(shape)}; "
                + (EMPTY if 0 in found else "config.json and the safetensors files are not of the same model.")
            )

    def save(self, conversion: Conversion, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `load`: the tensors by their names in the checkpoint, in the dtypes of the parameters."""
        one = parameters[conversion.parameters[0]]
        if conversion.rule is None:
            return {conversion.stored[0]: one}
        shapes = {name: self._checkpoint.entries[name].shape for name in conversion.stored}
        if [type(operation) for operation in conversion.rule.operations] == [Concatenate]:
            # Transformers' own reverse cuts into equal parts.
            order, axis = conversion.rule.source_patterns, conversion.rule.operations[0].dim
            names = sorted(conversion.stored, key=lambda name: order.index(conversion.patterns[name]))
            return dict(zip(names, one.split([shapes[name][axis] for name in names], axis), strict=True))
        rule = deepcopy(conversion.rule).reverse_transform()
        for operation in rule.operations:
            # One that turns only what has another shape than the parameter would never turn a parameter back.
            if hasattr(operation, "check_dims") and shapes[conversion.stored[0]] != one.shape:
                operation.check_dims = False
        first = ""
        for name in conversion.parameters:
            renamed, pattern = rule.rename_source_key(name)
            first = first or renamed
            rule.add_tensor(renamed, name, pattern, parameters[name])
        made = _singly(rule.convert(first, model=self._model, config=self._model.config))
        stored = {between: name for name, between in conversion.between.items()}
        if not made.keys() <= stored.keys():
            raise ValueError(f"{min(made.keys() - stored.keys())} is not in the checkpoint")
        return {stored[name]: tensor for name, tensor in made.items()}

    def _conversions(self) -> list[Conversion]:
        """All conversions with the stored tensors that go into each, by Transformers' rules."""
        model, wanted = self._model, self._model.state_dict(keep_vars=True)
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        prefix = model.base_model_prefix
        found: dict[str, Conversion] = {}
        for stored in sorted(self._checkpoint.entries, key=dot_natural_key):
            name, pattern = rename_source_key(stored, renamings, converters, prefix, wanted)
            if name not in wanted and stored in wanted:
                name, pattern = rename_source_key(stored, [], [], prefix, wanted)
            if name not in wanted:
                continue
            conversion = found.setdefault(name, Conversion(first=name))
            conversion.stored.append(stored)
            if pattern is None:
                conversion.shapes = {name: self._checkpoint.entries[stored].shape}
            else:
                conversion.rule = by_pattern[pattern]
                conversion.patterns[stored] = pattern
                between, _ = rename_source_key(stored, renamings, [])
                alone, _ = rename_source_key(stored, renamings, converters)
                if alone != name:  # the model has its base model's prefix before it, or lacks it
                    adds = name.endswith(f".{alone}")
                    between = f"{prefix}.{between}" if adds else between.removeprefix(f"{prefix}.")
                conversion.between[stored] = between
        return list(found.values())

    def _try(self, conversion: Conversion) -> None:
        """Convert there and back without values, to check that this works and to learn the parameters' shapes."""
        entries = self._checkpoint.entries
        try:
            empty = {name: torch.empty(entries[name].shape, device="meta") for name in conversion.stored}
            made = self.load(conversion, empty)
            conversion.shapes = {name: tuple(tensor.shape) for name, tensor in made.items()}
            back = self.save(conversion, made)
        except Exception as error:  # the rules raise nearly anything on tensors that do not fit
            raise UnsupportedModelError(
                f"{self._checkpoint.name}: {conversion.stored[0]} cannot be converted by Transformers' own rules "
                f"({short(error)})."
            ) from None
        if {name: tuple(tensor.shape) for name, tensor in back.items()} != {
            name: entries[name].shape for name in conversion.stored
        }:
            raise UnsupportedModelError(
                f"{self._checkpoint.name}: Transformers converts {conversion.stored[0]} when loading, but cannot "
                "convert it back, so it cannot be saved as it was; load the model with from_pretrained and save it "
                "with save_pretrained(..., save_original_format=False), then prune that folder."
            )


def _singly(made: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
