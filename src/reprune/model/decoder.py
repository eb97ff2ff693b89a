"""A decoder on disk, as the engine uses it: embeds samples, loads a block, knows what each block is passed.

The blocks are never all in memory at once. Knows nothing of pruning.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from reprune.errors import InputError, UnsupportedModelError, short
from reprune.math.finite import all_finite
from reprune.model.block import Block, Call, Precision
from reprune.model.checkpoint import FLOATS, Checkpoint
from reprune.model.conversion import Conversion, Layout
from reprune.model.costs import BlockCosts
from reprune.model.outside import Outside
from reprune.model.passing import Passing, Room, in_memory
from reprune.model.predictor import Predictor, check_predicts
from reprune.model.skeleton import Skeleton
from reprune.model.snapshots import by_hand
from reprune.model.undownloaded import Undownloaded
from reprune.model.unread import closest, way_out
from reprune.model.weightless import Weightless

_PACKED = (".qweight", ".qzeros", ".weight_packed")
"""Endings of the names of tensors that pack several numbers into one; config.json may not say that there are any."""


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
        undownloaded: Undownloaded | None = None,
    ) -> None:
        """
        Args:
            folder: an ordinary model folder (config.json and safetensors files).
            device: where blocks are run; the CPU by default.
            precision: of the blocks' products; float32 by default.
            undownloaded: weight files that are only on the Hub; blocks cannot be loaded from them.

        Raises:
            InputError: the folder is damaged or incomplete.
            UnsupportedModelError: the model's blocks cannot be run one by one, or lack tensors.
        """
        self.folder = folder
        self.device = device or torch.device("cpu")
        self.precision = precision or Precision()
        self.checkpoint = Checkpoint(folder, undownloaded)
        self.name = self.checkpoint.name
        self.skeleton = Skeleton(folder, trust_remote_code)
        for name in self.checkpoint.entries:
            self.checkpoint.dtype(name)  # only now: the skeleton's error about quantization says more
        self._layout = Layout(self.skeleton.model, self.checkpoint)
        self._outside = Outside(self.name, self.skeleton.model, self.skeleton.blocks_path, self._layout)
        self.weightless = Weightless(self.skeleton, self.precision, self._outside.fill_with_nothing)
        self._blocks = [self._conversions(index) for index in range(len(self))]
        self._block_of = {name: self._find_block_of(name) for name in self.checkpoint.entries}
        self._outside.check()
        self._passing = Passing(self.name, 0)  # for the samples that were embedded last

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.skeleton.blocks)

    @property
    def vocabulary(self) -> int:
        """The number of rows of the input embedding; token ids must be below it."""
        return int(self.skeleton.model.get_input_embeddings().weight.shape[0])

    def _path(self, index: int) -> str:
        return f"{self.skeleton.blocks_path}.{index}."

    def _conversions(self, index: int) -> list[Conversion]:
        """The conversions that make a block's parameters and saved buffers."""
        found: dict[int, Conversion] = {}
        path, block = self._path(index), self.skeleton.blocks[index]
        parameters = dict(block.named_parameters(remove_duplicate=False))
        for name, tensor in block.state_dict(keep_vars=True).items():
            conversion = self._layout.of_parameter.get(path + name)
            if conversion is None:
                if name in parameters:
                    raise UnsupportedModelError(self._why_missing(index, name, tuple(tensor.shape)))
                continue
            if outside := next((one for one in conversion.parameters if not one.startswith(path)), None):
                raise UnsupportedModelError(
                    f"{self.name}: {conversion.stored[0]} holds weights of both block {index} and {outside}; "
                    "blocks that share a stored tensor cannot be pruned one by one."
                )
            if conversion.rule is None and len(conversion.stored) > 1:
                one, other, *_ = conversion.stored
                raise InputError(
                    f"{self.folder}: the tensors {one} and {other} are both {path + name}; "
                    f"{by_hand(self.folder, 'remove the one that does not belong to this model from its files')}."
                )
            found[id(conversion)] = conversion
            self._layout.check(path + name, tensor)
        return list(found.values())

    def _why_missing(self, index: int, name: str, shape: tuple[int, ...]) -> str:
        full = self._path(index) + name
        if others := self._outside.aliases.get(full):
            return (
                f"{self.name}: {full} and {others[0]} are the same weights; a block that shares weights with other "
                "parts of the model cannot be pruned by itself."
            )
        if packed := next((stored for stored in self.checkpoint.entries if stored.endswith(_PACKED)), None):
            return (
                f"{self.name}: its weights are quantized ({packed}), and quantized weights cannot be pruned; "
                "use the model's bfloat16, float16 or float32 weights."
            )
        way = "the files may be incomplete, download the model again"
        unread = self._unread(index, full, shape)
        if unread is None and not self.used:  # if none is read, the names are of another format; the closest will do
            unread = closest(full, self.checkpoint.entries)
        if unread is not None:
            way = way_out(unread, self.checkpoint.entries, full)
        return (
            f"{self.name}: the parameter {name} of block {index} is not in its safetensors files under the name "
            f"{full} or another that Transformers reads; {way}."
        )

    def _unread(self, index: int, name: str, shape: tuple[int, ...]) -> str | None:
        """The unread stored tensor of a parameter's shape and block whose name is closest to the parameter's."""
        unread = (
            stored
            for stored, entry in self.checkpoint.entries.items()
            if entry.shape == shape and str(index) in stored.split(".") and not self._layout.parameters_of(stored)
        )
        return closest(name, unread)

    @property
    def used(self) -> list[str]:
        """The names of the checkpoint's tensors that the model uses."""
        return self._layout.used

    def block_of(self, stored: str) -> int | None:
        """The number of the block that a checkpoint's tensor belongs to, or None."""
        return self._block_of.get(stored)

    def _find_block_of(self, stored: str) -> int | None:
        base = f"{self.skeleton.model.base_model_prefix}."
        path = f"{self.skeleton.blocks_path}."
        # Tensors that the model does not use (old buffers) are assigned by their own names.
        names = self._layout.parameters_of(stored) or [stored, base + stored, stored.removeprefix(base)]
        for name in names:
            if name.startswith(path):
                number = name[len(path) :].split(".", 1)[0]
                return int(number) if number.isdigit() and int(number) < len(self) else None
        return None

    def block_bytes(self, index: int) -> int:
        """The bytes of a block's tensors in the checkpoint."""
        entries = self.checkpoint.entries
        return sum(entries[stored].bytes for conversion in self._blocks[index] for stored in conversion.stored)

    def not_finite(self) -> Iterator[str]:
        """The names of stored tensors that the model uses and that hold NaN or infinity; reads all of them."""
        for stored in self.used:
            tensor = self.checkpoint.tensor(stored)
            if tensor.dtype in FLOATS and not all_finite(tensor):
                yield stored

    def check_finite(self) -> None:
        """Raise `InputError` if a stored weight that the model uses is NaN or infinite."""
        if (stored := next(self.not_finite(), None)) is not None:
            raise InputError(
                f"{self.name}: the tensor {stored} holds NaN or infinite values, so the model cannot be pruned; "
                "download it again, or save it again in a dtype that can hold its numbers, such as bfloat16."
            )

    def width(self, tokens: int) -> int:
        """How many numbers a stream of samples of so many tokens holds for each token."""
        return self.weightless.width(tokens)

    def own_bytes(self, tokens: int) -> int:
        """The bytes of what blocks are passed for one sample of `tokens` tokens and differs between samples."""
        return self.weightless.own_bytes(tokens)

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        """The shapes of a block's tensors, by their names in it."""
        path = self._path(index)
        return {
            name.removeprefix(path): shape
            for conversion in self._blocks[index]
            for name, shape in conversion.shapes.items()
        }

    @property
    def head_shape(self) -> tuple[int, int]:
        """The shape of the output head, (words, hidden size); (0, 0) if it is not one matrix."""
        weight = getattr(self.skeleton.model.get_output_embeddings(), "weight", None)
        return (0, 0) if weight is None or weight.dim() != 2 else (weight.shape[0], weight.shape[1])

    @property
    def lacking(self) -> list[str]:
        """Parameters outside the blocks that the files lack, except those that Transformers makes itself."""
        return self._outside.lacking

    def outside_bytes(self) -> list[int]:
        """The bytes of each tensor outside the blocks in the checkpoint."""
        return [self.checkpoint.entries[name].bytes for name, index in self._block_of.items() if index is None]

    def load(self, index: int, changed: Mapping[str, Tensor] | None = None) -> Block:
        """A block with its weights, float32, on the device; no other block is touched.

        Args:
            index: the block's number.
            changed: tensors to use in place of the checkpoint's, by their names there.

        Raises:
            UnsupportedModelError: the matrices that the block's parameters hold cannot be determined.
        """
        module = copy.deepcopy(self.skeleton.blocks[index])
        changed = changed or {}
        state = {}
        for conversion in self._blocks[index]:
            stored = {
                name: changed[name] if name in changed else self.checkpoint.tensor(name) for name in conversion.stored
            }
            for name, tensor in self._layout.load(conversion, stored).items():
                dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
                made = torch.empty(tensor.shape, dtype=dtype, device=self.device)
                # Sent as it is stored: widened on the host it would be twice as much for a GPU's link.
                state[name.removeprefix(self._path(index))] = made.copy_(tensor.to(self.device))
        module.load_state_dict(state, strict=False, assign=True)
        module = module.to(self.device).requires_grad_(False)
        try:
            stacks = self.weightless.stacks(index)
        except Exception as error:  # whatever a module raises
            raise UnsupportedModelError(
                f"{self.name}: the matrices that block {index} multiplies by could not be found ({short(error)})."
            ) from error
        return Block(index, module, self.device, self.precision, stacks)

    @torch.no_grad()
    def rounded(self, block: Block) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A block as it is stored.

        Returns:
            All its tensors under the checkpoint's names and in its dtypes, on the CPU; tensors of the checkpoint that
            the block's module does not know (old buffers) are passed on unchanged. And its parameters as they would be
            read from these tensors, by their names in the block, on its device: there they are rounded.

        Raises:
            UnsupportedModelError: the stored tensors would not be read back as what the block holds.
        """
        tensors = {
            name: self.checkpoint.tensor(name)
            for name, index in self._block_of.items()
            if index == block.index and not self._layout.parameters_of(name)
        }
        parameters: dict[str, Tensor] = {}
        path, state = self._path(block.index), block.module.state_dict()
        for conversion in self._blocks[block.index]:
            held = {name: state[name.removeprefix(path)] for name in conversion.parameters}
            stored = {
                name: tensor.to(self.checkpoint.dtype(name)).contiguous()
                for name, tensor in self._layout.save(conversion, held).items()
            }
            for name, tensor in self._layout.load(conversion, stored).items():
                parameters[name.removeprefix(path)] = tensor
                if conversion.rule is None:
                    continue
                rounded = held[name].to(tensor.dtype)
                # NaN, which `round_` refuses, is equal to nothing.
                if not (torch.equal(tensor, rounded) or torch.equal(tensor.nan_to_num(), rounded.nan_to_num())):
                    raise UnsupportedModelError(
                        f"{self.name}: {name} cannot be stored as {conversion.stored[0]}: Transformers "
                        "would read back other values."
                    )
            tensors |= {name: tensor.cpu() for name, tensor in stored.items()}
        return tensors, parameters

    @torch.no_grad()
    def embed(self, ids: Tensor, slices: Iterable[slice], room: Room = in_memory) -> Iterable[tuple[slice, Tensor]]:
        """The states that enter block 0, a batch at a time; what all blocks are passed is recorded for `call`.

        Args:
            ids: all samples (samples, tokens), int64.
            slices: the batches.
            room: for what blocks are passed and differs between samples.

        Yields:
            Each slice with its states (batch, tokens, ...), float32, on the CPU.

        Raises:
            UnsupportedModelError: a block is passed something that differs between samples but is not a tensor with a
                row for each sample, or that depends on the blocks before it.
        """
        slices = list(slices)
        self._passing = Passing(self.name, max(batch.stop for batch in slices), room)
        for batch in slices:
            states, calls = self.skeleton.record(ids[batch], self._outside.fill)
            self._passing.take(batch, calls, partial(self._calls_of_others, ids, batch))
            if batch.start == 0 and self._passing.has_own:
                self._passing.check(calls, self.skeleton.record(ids[batch], self._outside.fill, disturb=True)[1])
            yield batch, states.float()
        self._passing.finish(self.device)

    def _calls_of_others(self, ids: Tensor, batch: slice) -> list[Call]:
        """What blocks are passed with other samples, as many as the batch has."""
        others = ids.roll(1, 0)[batch] if len(ids) > 1 else (ids[batch] + 1) % self.vocabulary
        return self.skeleton.record(others, self._outside.fill)[1]

    def call(self, index: int, samples: slice | Tensor) -> Call:
        """What a block is passed with the states of some samples; `embed` must have seen a batch of that size."""
        return self._passing.call(index, samples)

    def release(self) -> None:
        """Give back the memory of all weights outside the blocks."""
        self.skeleton.release()

    def forget_samples(self) -> None:
        """Give back the memory of what blocks are passed with the samples that were embedded last."""
        self._passing = Passing(self.name, 0)

    def predictor(self) -> Predictor:
        """What follows the last block: from its outputs to logits; `release` gives the memory back."""
        fill_after = partial(self._outside.fill, device=self.device, products=self.precision.products)

        def run(states: Tensor, ids: Tensor) -> Tensor:
            with self.precision.on(self.device):
                return self.skeleton.predict(ids, states, self._outside.fill, fill_after)

        return Predictor(run)

    def check_predicts(self) -> None:
        """Like `predictor.check_predicts`."""
        check_predicts(self.skeleton, self.precision, self._outside.fill_with_nothing)

    def costs(self, tokens: int, device: str | None = None) -> list[BlockCosts]:
        """The costs of each block for one sample of `tokens` tokens, on a type of device, by default the decoder's."""
        return self.weightless.costs(tokens, device or self.device.type)
