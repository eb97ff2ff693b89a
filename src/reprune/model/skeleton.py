"""A decoder without its weights, its blocks found by what it does rather than by its name.

The model is built from its configuration with all parameters on the meta device. Its blocks are replaced by
recorders, and the model's own forward is run over them: what reaches a recorder is what the block would have been
given. Nothing of a model's forward is rebuilt here, so masks, rotary embeddings and whatever else differs from
block to block are the model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from reprune.errors import InputError, RepruneError, UnsupportedModelError
from reprune.model.block import Call
from reprune.model.linears import find_linears
from reprune.model.quiet import quiet_transformers

Fill = Callable[[str, nn.Module, Tensor | None], None]
"""Gives the parameters of a module outside the blocks: (module name, module, token ids if it embeds them)."""


@final
class _Recorder(nn.Module):
    """Stands in for a block: keeps what it is given and hands the hidden states on as they are."""

    def __init__(self, block: nn.Module, saw: Callable[[Tensor, Call], bool], as_tuple: bool) -> None:
        super().__init__()
        self._attributes = {key: value for key, value in vars(block).items() if not key.startswith("_")}
        self._names = list(inspect.signature(block.forward).parameters)
        self._saw = saw
        self._as_tuple = as_tuple

    def __getattr__(self, name: str) -> Any:
        # Models ask their blocks for such things as attention_type before they call them.
        attributes = self.__dict__.get("_attributes", {})
        return attributes[name] if name in attributes else super().__getattr__(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor):
            states, call = args[0], Call((None, *args[1:]), kwargs, 0)
        else:
            key = next((name for name in ("hidden_states", *self._names) if isinstance(kwargs.get(name), Tensor)), None)
            if key is None:
                raise UnsupportedModelError("a block is called without hidden states, so it cannot be run by itself.")
            states, call = kwargs[key], Call(args, {**kwargs, key: None}, key)
        if self._saw(states, call):
            raise _LastBlockReached
        return (states,) if self._as_tuple else states


class _LastBlockReached(Exception):
    """Ends a forward pass when the last recorder has been called: what comes after is never run."""


@final
class Skeleton:
    """The modules of a decoder: where its blocks are, and what it does before them."""

    def __init__(self, folder: Path, trust_remote_code: bool = False) -> None:
        """Build the model of a folder's config.json without weights and find its blocks.

        Raises:
            UnsupportedModelError: it is no decoder whose blocks can be run one by one; the message says why.
        """
        self.model = _build(folder, trust_remote_code)
        self.config: Any = self.model.config.get_text_config(decoder=True)
        self.blocks_path, self.blocks = _find_blocks(self.model)
        self._as_tuple = False
        self._fused_attention = getattr(self.model.config, "_attn_implementation", None) == "sdpa"

    def attend_by_products(self, on: bool) -> None:
        """Have Transformers' models attend by plain products and softmax ("eager"), or by PyTorch's fused kernels.

        Models that do not attend by these kernels on their own, such as remote code of its own kind, stay as they are.
        """
        if self._fused_attention:
            with quiet_transformers():
                self.model.set_attn_implementation("eager" if on else "sdpa")

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model takes, where its configuration says so."""
        return max_positions(self.config)

    @property
    def prefix(self) -> str:
        """What the names of the base model's parameters begin with, such as "model."."""
        return f"{self.model.base_model_prefix}." if self.model.base_model_prefix else ""

    def is_outside(self, path: str) -> bool:
        """Whether a module of that path lies outside the blocks."""
        return _is_outside(path, self.blocks_path)

    @torch.no_grad()
    def record(self, ids: Tensor, fill: Fill) -> tuple[Tensor, list[Call]]:
        """Run the model's own forward on token ids up to its last block, over recorders.

        Args:
            ids: (batch, tokens), int64.
            fill: gives the weights that are needed before the blocks.

        Returns:
            The states that enter the first block, (batch, tokens, hidden), and what each block is passed with them.

        Raises:
            UnsupportedModelError: the blocks do not hand the states from one to the next.
        """
        try:
            return self._record(ids, fill)
        except RepruneError:
            raise
        except Exception as error:
            first = error
        self._as_tuple = not self._as_tuple  # perhaps the blocks of this model return tuples
        try:
            return self._record(ids, fill)
        except RepruneError:
            raise
        except Exception:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: its forward does not run over recorders in place of its blocks "
                f"({type(first).__name__}: {first})."
            ) from first

    def _record(self, ids: Tensor, fill: Fill) -> tuple[Tensor, list[Call]]:
        entered: list[Tensor] = []
        calls: list[Call] = []

        def saw(index: int, states: Tensor, call: Call) -> bool:
            if index != len(calls):
                raise UnsupportedModelError(
                    f"{type(self.model).__name__}: block {index} is called where block {len(calls)} was expected; "
                    "blocks that do not run once each in their order cannot be pruned one by one."
                )
            if calls and states is not entered[0]:
                if states.shape != entered[0].shape:
                    raise TypeError("the blocks return tuples")
                if not torch.equal(states, entered[0]):
                    raise UnsupportedModelError(
                        f"{type(self.model).__name__}: the model changes the hidden states between block {index - 1} "
                        f"and block {index}, so its blocks cannot be run one by one."
                    )
            entered.append(states)
            calls.append(call)
            return len(calls) == len(self.blocks)

        with self._recorders(saw), _filling(self.model, self.blocks_path, fill), quiet_transformers():
            try:
                self.model(input_ids=ids, use_cache=False)
            except _LastBlockReached:
                return entered[0], calls
        raise UnsupportedModelError(
            f"{type(self.model).__name__}: only {len(calls)} of {len(self.blocks)} blocks at {self.blocks_path} run."
        )

    @contextmanager
    def _recorders(self, saw: Callable[[int, Tensor, Call], bool]) -> Iterator[None]:
        originals = list(self.blocks)
        for index, block in enumerate(originals):
            self.blocks[index] = _Recorder(block, partial(saw, index), self._as_tuple)
        try:
            yield
        finally:
            for index, block in enumerate(originals):
                self.blocks[index] = block


def read_config(folder: Path, trust_remote_code: bool) -> Any:
    """The configuration of a model folder; raises `InputError` where Transformers cannot read it."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # the library raises nearly anything on a damaged configuration
        raise InputError(f"{folder.name}: its config.json cannot be used: {' '.join(str(error).split())}") from None


def max_positions(config: Any) -> int | None:
    """The longest sequence that a decoder takes, where its configuration says so."""
    value = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(value) if value else None


def _build(folder: Path, trust_remote_code: bool) -> Any:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = read_config(folder, trust_remote_code)
    with quiet_transformers():
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedModelError(
                f"{folder.name}: {config.model_type} is an encoder-decoder; a decoder is needed."
            )
        if getattr(config, "quantization_config", None) is not None:
            raise UnsupportedModelError(
                f"{folder.name}: its weights are quantized, and quantized weights cannot be pruned; "
                "use the model's bfloat16, float16 or float32 weights (a .gguf file is dequantized by itself)."
            )
        try:
            # Buffers are made for real: those that no checkpoint holds (rotary frequencies) exist nowhere else.
            with no_init_weights(), init_empty_weights(include_buffers=False):
                model: Any = AutoModelForCausalLM.from_config(
                    config, dtype=torch.float32, trust_remote_code=trust_remote_code
                )
        except ValueError as error:
            raise UnsupportedModelError(
                f"{folder.name}: {config.model_type} is not a causal language model of Transformers: {error}"
            ) from None
    return model.eval()


def _find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The one list of modules that each hold linears and lie in no other such list."""
    found: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in found):
            continue
        if len(module) and all(any(True for _ in _weights(child)) for child in module):
            found[path] = module
    if not found:
        raise UnsupportedModelError(f"{type(model).__name__}: no list of blocks with linears was found in it.")
    if len(found) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__}: several lists of blocks were found ({', '.join(found)}), and which of them is "
            "the decoder cannot be told."
        )
    return next(iter(found.items()))


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """The weight matrices of a would-be block."""
    yield from (linear.parameter for linear in find_linears(module))
    yield from (parameter for parameter in module.parameters() if parameter.dim() >= 3)


def _is_outside(path: str, blocks_path: str) -> bool:
    return not f"{path}.".startswith(f"{blocks_path}.")


@contextmanager
def _filling(model: Any, blocks_path: str, fill: Fill) -> Iterator[None]:
    """Have the weights of each module outside the blocks filled in just before it first runs."""
    embedding = model.get_input_embeddings()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: fill(name, module, args[0] if module is embedding else None)

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if _is_outside(name, blocks_path) and (module._parameters or module._buffers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
