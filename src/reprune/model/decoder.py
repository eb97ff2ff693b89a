"""A decoder on disk, as the engine uses it: embed samples, load a block, know what each block is passed.

At no time are all blocks in memory. Knows nothing of pruning.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from reprune.errors import UnsupportedModelError
from reprune.model.block import Block, Call, Precision
from reprune.model.checkpoint import Checkpoint, TensorEntry
from reprune.model.costs import BlockCosts, block_costs
from reprune.model.skeleton import Skeleton

_NEAR_SCORES = 2**23  # attention scores: so many that with more the fused kernel is as fast
_PLANNED_TOKENS = 16  # tokens of the sample that never leaves the meta device


@final
class Decoder:
    """The blocks of a model folder, loaded one at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device | None = None,
        precision: Precision | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """
        Args:
            folder: an ordinary model folder (config.json and safetensors files).
            device: where blocks are run; the CPU by default.
            precision: in which dtype their products are computed; float32 by default.

        Raises:
            InputError: the folder is damaged or incomplete.
            UnsupportedModelError: the model's blocks cannot be run one by one, or lack tensors.
        """
        self.folder = folder
        self.device = device or torch.device("cpu")
        self.precision = precision or Precision()
        self.checkpoint = Checkpoint(folder)
        self.skeleton = Skeleton(folder, trust_remote_code)
        self.names = [self._block_names(index) for index in range(len(self))]
        self._saved = frozenset(self.skeleton.model.state_dict(keep_vars=True))  # what a checkpoint may hold
        self._calls: dict[int, list[Call]] = {}  # by batch size
        self._shapes: tuple[Tensor, list[Call]] | None = None

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.skeleton.blocks)

    @property
    def vocabulary(self) -> int:
        """The number of rows of the input embedding: token ids are below it."""
        return int(self.skeleton.model.get_input_embeddings().weight.shape[0])

    def _block_names(self, index: int) -> dict[str, str]:
        """Of one block: the names of its parameters (and saved buffers) to the names in the checkpoint."""
        names = {}
        parameters = dict(self.skeleton.blocks[index].named_parameters())
        for name, tensor in self.skeleton.blocks[index].state_dict().items():
            stored = self._stored_name(f"{self.skeleton.blocks_path}.{index}.{name}")
            if stored is not None:
                names[name] = stored
                self._check_shape(stored, tuple(tensor.shape))
            elif name in parameters:
                raise UnsupportedModelError(
                    f"{self.folder.name}: the parameter {name} of block {index} is not in its safetensors files "
                    f"under the name {self.skeleton.blocks_path}.{index}.{name}. The files may be incomplete, or "
                    "Transformers renames this model's tensors on loading: load it with from_pretrained and write "
                    "it with save_pretrained(..., save_original_format=False), then prune that folder."
                )
        return names

    def _check_shape(self, stored: str, shape: tuple[int, ...]) -> None:
        """Raise `UnsupportedModelError` unless the checkpoint's tensor has the shape that the configuration says."""
        found = self.checkpoint.entries[stored].shape
        if found != shape:
            raise UnsupportedModelError(
                f"{self.folder.name}: the tensor {stored} has the shape {list(found)}, but the configuration makes it "
                f"{list(shape)}; config.json and the safetensors files are not of one model."
            )

    def _stored_name(self, name: str) -> str | None:
        """The checkpoint's name of a parameter: the same, or with the base model's prefix taken off or put on."""
        prefix = self.skeleton.prefix
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in self.checkpoint.entries:
                return candidate
        return None

    def block_of(self, stored: str) -> int | None:
        """The number of the block that a checkpoint's tensor belongs to, or None."""
        path, base = f"{self.skeleton.blocks_path}.", self.skeleton.prefix
        for prefix in (path, path.removeprefix(base), base + path):
            if stored.startswith(prefix):
                number = stored[len(prefix) :].split(".", 1)[0]
                return int(number) if number.isdigit() and int(number) < len(self) else None
        return None

    def block_bytes(self, index: int) -> int:
        """What a block's tensors take in the checkpoint."""
        return sum(self.checkpoint.entries[stored].bytes for stored in self.names[index].values())

    @property
    def hidden(self) -> int:
        """How many numbers the hidden state of a token has."""
        said = getattr(self.skeleton.config, "hidden_size", None)
        return int(said or self.skeleton.model.get_input_embeddings().weight.shape[1])

    def shapes(self, index: int) -> list[tuple[int, ...]]:
        """The shapes of a block's tensors."""
        return [self.checkpoint.entries[stored].shape for stored in self.names[index].values()]

    def outside_bytes(self) -> list[int]:
        """What each tensor outside the blocks takes in the checkpoint."""
        return [entry.bytes for name, entry in self.checkpoint.entries.items() if self.block_of(name) is None]

    def entry(self, index: int, name: str) -> TensorEntry:
        """Where a parameter of a block lies in the checkpoint."""
        return self.checkpoint.entries[self.names[index][name]]

    def load(self, index: int, changed: Mapping[str, Tensor] | None = None) -> Block:
        """A block with its weights, float32, on the device; no other block is touched.

        Args:
            index: the block's number.
            changed: tensors that take the place of the checkpoint's, by the names they have there.
        """
        module = copy.deepcopy(self.skeleton.blocks[index])
        changed = changed or {}
        state = {}
        for name, stored in self.names[index].items():
            tensor = changed[stored] if stored in changed else self.checkpoint.tensor(stored)
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            state[name] = torch.empty(tensor.shape, dtype=dtype, device=self.device).copy_(tensor)
        module.load_state_dict(state, strict=False, assign=True)
        return Block(index, module.to(self.device).requires_grad_(False).eval(), self.device, self.precision)

    @torch.no_grad()
    def stored_tensors(self, block: Block) -> dict[str, Tensor]:
        """All of a block's tensors under the checkpoint's names and in its dtypes, on the CPU.

        Tensors of the checkpoint that the block's module does not know (old buffers) are passed on as they are.
        """
        tensors = {
            name: self.checkpoint.tensor(name) for name in self.checkpoint.entries if self.block_of(name) == block.index
        }
        state = block.module.state_dict()
        for name, stored in self.names[block.index].items():
            tensors[stored] = state[name].to(device="cpu", dtype=self.checkpoint.entries[stored].dtype)
        return tensors

    @torch.no_grad()
    def embed(self, ids: Tensor, slices: Iterable[slice]) -> Iterable[tuple[slice, Tensor]]:
        """The states that enter block 0, a batch at a time, and along with them what all blocks are passed.

        Args:
            ids: all samples (samples, tokens), int64.
            slices: the batches.

        Yields:
            Each slice with its states (batch, tokens, hidden), float32, on the CPU.

        Raises:
            UnsupportedModelError: a block is passed something that differs from sample to sample.
        """
        slices = list(slices)
        self._choose_attention(max(len(ids[batch]) for batch in slices), ids.shape[1])
        for batch in slices:
            states, calls = self.skeleton.record(ids[batch], self._fill)
            size = len(ids[batch])
            if size not in self._calls:  # other samples must be passed the same as these
                others = ids.roll(1, 0)[batch] if len(ids) > 1 else (ids[batch] + 1) % self.vocabulary
                self._calls[size] = self.skeleton.record(others, self._fill)[1]
            known = self._calls[size]
            for index, (one, other) in enumerate(zip(known, calls, strict=True)):
                if (name := _difference(one, other)) is not None:
                    raise UnsupportedModelError(
                        f"{self.folder.name}: block {index} is passed {name!r}, which differs from sample to sample; "
                        "blocks that depend on more than the hidden states cannot be pruned one by one."
                    )
            yield batch, states.float()
        self._calls = {size: _to(calls, self.device) for size, calls in self._calls.items()}

    def _choose_attention(self, samples: int, tokens: int) -> None:
        """Have the blocks attend by plain products where that is faster than PyTorch's fused kernel.

        That is on a CPU, in bfloat16, as long as the scores of all heads stay near the processor.
        """
        heads = getattr(self.skeleton.config, "num_attention_heads", None)
        near = isinstance(heads, int) and samples * heads * tokens**2 <= _NEAR_SCORES
        bfloat16 = self.precision.products == torch.bfloat16
        self.skeleton.attend_by_products(near and bfloat16 and self.device.type == "cpu")

    def call(self, index: int, batch: int) -> Call:
        """What a block is passed beside the states of a batch of so many samples (of a size seen by `embed`)."""
        return self._calls[batch][index]

    def release(self) -> None:
        """Give back the memory of all weights outside the blocks."""
        for name, module in self.skeleton.model.named_modules():
            if self.skeleton.is_outside(name):
                for key, parameter in module.named_parameters(recurse=False):
                    setattr(module, key, nn.Parameter(parameter.to("meta"), requires_grad=False))

    def _fill(self, path: str, module: nn.Module, ids: Tensor | None) -> None:
        """Load the parameters of a module outside the blocks; of the embedding, the rows of these ids only."""
        prefix = f"{path}." if path else ""
        for key, buffer in module.named_buffers(recurse=False):
            if prefix + key in self._saved and (stored := self._stored_name(prefix + key)) is not None:
                self._check_shape(stored, tuple(buffer.shape))
                buffer.copy_(self.checkpoint.tensor(stored))
        for key, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta and ids is None:
                continue
            name = prefix + key
            stored = self._stored_name(name)
            if stored is None:
                raise UnsupportedModelError(f"{self.folder.name}: the tensor {name} is not in its safetensors files.")
            source = self.checkpoint.tensor(stored)
            self._check_shape(stored, tuple(parameter.shape))
            if parameter.is_meta:
                # Fresh pages take no memory until they are written: an embedding takes that of the rows in use.
                parameter = nn.Parameter(torch.empty(source.shape, dtype=torch.float32), requires_grad=False)
                setattr(module, key, parameter)
            if ids is None or key != "weight":
                parameter.copy_(source)
            else:
                rows = ids.unique()
                parameter[rows] = source[rows].float()

    @torch.no_grad()
    def groups_without_weights(self, index: int) -> list[tuple[str, ...]]:
        """The names of a block's linear groups, found by running it on the meta device: no weight is read."""
        if self._shapes is None:
            tokens = min(_PLANNED_TOKENS, self.skeleton.max_positions or _PLANNED_TOKENS)
            ids = torch.zeros(1, tokens, dtype=torch.int64)
            self._shapes = self.skeleton.record(ids, _fill_with_nothing)
            self.release()
        states, calls = self._shapes
        meta = torch.device("meta")
        module = copy.deepcopy(self.skeleton.blocks[index]).to(meta)
        block = Block(index, module, meta, Precision())
        return [group.names for group in block.groups(states.to(meta), _to([calls[index]], meta)[0])]

    @torch.no_grad()
    def costs(self, tokens: int, at_a_time: int = 1) -> list[BlockCosts]:
        """What each block costs on a sample of so many tokens, where so many pass at a time; no weight is read."""
        self._choose_attention(at_a_time, tokens)
        one, two = (
            self.skeleton.record(torch.zeros(samples, tokens, dtype=torch.int64), _fill_with_nothing)
            for samples in (1, 2)
        )
        self.release()
        known: dict[Hashable, BlockCosts] = {}  # most blocks of a model are alike
        costs = []
        for module, call, for_two in zip(self.skeleton.blocks, one[1], two[1], strict=True):
            shapes = tuple((name, parameter.shape) for name, parameter in module.named_parameters())
            kind = type(module), shapes, tuple((key, _kind(value)) for key, value in call.kwargs.items())
            if kind not in known:
                known[kind] = block_costs(module, (one[0], call), (two[0], for_two), self.precision)
            costs.append(known[kind])
        return costs


def _kind(value: object) -> Hashable:
    return (*value.shape, str(value.dtype)) if isinstance(value, Tensor) else type(value).__name__


def _fill_with_nothing(path: str, module: nn.Module, ids: Tensor | None) -> None:
    """Give a module memory without values: enough to learn the shapes of what it makes."""
    del path, ids
    for key, parameter in list(module.named_parameters(recurse=False)):
        if parameter.is_meta:
            # An embedding of gigabytes takes no memory as long as nothing is written to it.
            nothing = torch.empty if parameter.dim() == 2 else torch.zeros
            setattr(module, key, nn.Parameter(nothing(parameter.shape), requires_grad=False))


def _difference(one: Call, other: Call) -> str | None:
    """The name of the first argument in which two calls differ, or None."""
    pairs = [
        *((f"argument {n}", a, b) for n, (a, b) in enumerate(zip(one.args, other.args, strict=True))),
        *((name, one.kwargs[name], other.kwargs[name]) for name in one.kwargs),
    ]
    return next((name for name, a, b in pairs if not _equal(a, b)), None)


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, int | float | str | None):
        return bool(one == other)
    return type(one) is type(other)


def _to(calls: list[Call], device: torch.device) -> list[Call]:
    """The calls with their tensors on a device; a tensor that several blocks share stays shared."""
    moved: dict[int, Tensor] = {}

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return moved.setdefault(id(value), value.detach().to(device))
        if isinstance(value, tuple | list):
            return type(value)(move(item) for item in value)
        if isinstance(value, dict):
            return {key: move(item) for key, item in value.items()}
        return value

    return [replace(call, args=move(call.args), kwargs=move(call.kwargs)) for call in calls]
