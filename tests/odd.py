"""A tiny decoder with a chosen quirk, each of which bends or breaks one assumption about models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
import transformers as tf
from torch import Tensor, nn

Quirk = Literal[
    "",  # none: a plain decoder
    # what is supported
    "tuples",  # blocks return tuples
    "keywords",  # blocks are given the states by a keyword with another name
    "block buffer",  # a block multiplies by a saved buffer
    "outer buffer",  # the model multiplies by a saved buffer before its blocks
    "likely name",  # a module before the blocks has a name that begins with theirs
    "of a class",  # the model asks of which class a block is before it calls it
    "by weights",  # blocks multiply by the weights of linears whose modules they never run
    "by weights, by values",  # the same, and they look at a value
    "shared linear",  # a linear of each block runs twice
    "by number",  # the linears of a block have no name of their own
    "beside, of tokens",  # blocks hand the next one a number of each token beside the states
    "beside, of tokens, to the end",  # the same, and the model adds the last block's to the states
    "beside, of tokens, passed on",  # the first block hands it to the last, by way of those between
    "beside, of tokens, passed on to the end",  # the same, and only the model uses it, after its blocks
    "by name, of tokens",  # the first, as an entry of a mapping that all are passed
    "by name, of its own",  # each writes to a mapping that only it is passed, and reads from it
    "by name, of the first",  # all need the first one's entry, and hand the next one whole numbers that it does not use
    "beside, numbers",  # blocks hand the next one a whole number of each token beside the states
    "beside, chosen",  # the first block chooses tokens for each token, as many as there are, up to 16; all read these
    "beside, chosen of many",  # the same as a mask, which is passed on and used only if there are more than 16 tokens
    "beside, of no use",  # blocks hand the next one something beside the states, which it does not use
    "looked at",  # the model uses a weight whose module it never runs
    "where a weight is",  # the model makes numbers on the device of a weight whose module has not run
    "where a weight is, by name",  # the same, and gives them to that module by a keyword
    "masked in place",  # each block writes the same into a tensor that all are passed
    "not all",  # the last block does not run
    "side list",  # another list of blocks that no text passes through
    # what survey refuses by name
    "stray matrix",  # a block holds a matrix that belongs to no linear
    "idle linear",  # a linear of each block never runs
    "joined",  # blocks multiply by several linears' weights in one product
    # what cannot be run block by block
    "cache",  # blocks are passed a cache that they may write to, whatever use_cache says
    "in place",  # blocks write into the states that they are given
    "per sample",  # blocks are given a tensor that depends on the tokens
    "per sample, nested",  # the same, within a dict
    "per sample, in an object",  # the same, within an object
    "per sample, in its own object",  # the same, within an object that lies within another, and that within itself
    "per sample, a number",  # the same, as a number
    "per sample, a number in an object",  # the same, within an object
    "beside",  # blocks hand the next one something beside the states that belongs to no token
    "beside, by name",  # the same, as an entry of a mapping that all are passed
    "beside, without name",  # the same, where the argument has no name
    "handed on",  # blocks are given the first block's output
    "handed on, in an object",  # the first block writes its output into an object that all are passed
    "handed on, in a tensor",  # each block adds its output to a tensor that all are passed
    "between",  # the model changes the states between its blocks
    "backwards",  # the last block runs first
    "again",  # the first block runs twice
    "two lists",  # two lists of blocks, one after the other
    "no blocks",  # none at all
]


_MAPPINGS = ("beside, by name", "beside, without name", "by name, of tokens", "by name, of its own")


class OddConfig(tf.PreTrainedConfig):
    model_type = "odd"

    def __init__(self, quirk: Quirk = "", num_hidden_layers: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.quirk = quirk
        self.num_hidden_layers = num_hidden_layers
        self.hidden_size = 16
        self.vocab_size = 320


@dataclass(frozen=True)
class _Side:
    nested: Tensor


class _Block(nn.Module):
    def __init__(self, quirk: Quirk, hidden: int) -> None:
        super().__init__()
        self.quirk = quirk
        self.is_first = self.is_last = False
        up, down = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden, bias=False)
        if quirk == "by number":
            self.mlp = nn.Sequential(up, nn.ReLU(), down)
            return
        self.up, self.down = up, down
        if quirk == "stray matrix":
            self.mixer = nn.Parameter(torch.randn(hidden, hidden))
        if quirk == "idle linear":
            self.idle = nn.Linear(hidden, hidden)
        if quirk == "joined":
            self.gate, self.value = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        if quirk == "block buffer":
            self.register_buffer("gain", torch.ones(hidden))

    def forward(self, x: Tensor, side: Any = None, cache: Any = None) -> Any:
        del cache
        if self.quirk == "by number":
            return x + self.mlp(x)
        if self.quirk == "beside, chosen":
            chosen = _choose(x) if self.is_first else side
            return x + self.down(torch.relu(self.up(_mean_of_chosen(x, chosen)))), chosen
        if self.quirk == "beside, chosen of many":
            chosen = _choose_of_many(x) if self.is_first else side
            read = x if x.shape[1] <= 16 else chosen.to(x) @ x
            return x + self.down(torch.relu(self.up(read))), chosen
        inner = torch.relu(self.up(x))
        if self.quirk == "shared linear":
            inner = inner + self.up(torch.tanh(x))
        if self.quirk == "joined":
            gate, value = nn.functional.linear(x, torch.cat([self.gate.weight, self.value.weight])).chunk(2, -1)
            inner = inner + (gate * value).repeat(1, 1, 2)
        if self.quirk == "by weights, by values":
            x = x * float(x.isfinite().all())
        if self.quirk.startswith("by weights"):
            return x + torch.relu(nn.functional.linear(x, self.up.weight, self.up.bias)) @ self.down.weight.T
        out = x.add_(self.down(inner)) if self.quirk == "in place" else x + self.down(inner)
        if self.quirk == "stray matrix":
            out = out @ self.mixer
        if self.quirk == "block buffer":
            out = out * self.gain
        if self.quirk == "by name, of the first":
            if self.is_first:
                side["seen"] = out.mean(-1, keepdim=True)
            return out + side["seen"], out.argmax(-1, keepdim=True)
        if self.quirk.startswith("beside, of tokens, passed on") and not self.is_first:
            return out + side if self.is_last and not self.quirk.endswith("to the end") else out, side
        if self.quirk in _MAPPINGS:
            for value in side.values():
                out = out + value
            side["seen"] = out.mean(-1, keepdim=True) if self.quirk.startswith("by name") else out.mean()
        elif self.quirk == "handed on, in an object":
            side.first = out if side.first is None else side.first
            out = out + side.first
        elif self.quirk == "handed on, in a tensor":
            out = out + side
            side.add_(out)
        elif self.quirk == "masked in place":
            out = out + side.clamp_(max=0.5)
        elif side is not None and self.quirk != "beside, of no use":
            held = side.me.within if self.quirk == "per sample, in its own object" else side
            out = out + (held["nested"] if isinstance(held, dict) else getattr(held, "nested", held))
        if self.quirk.startswith("beside, of tokens"):
            return out, out.mean(-1, keepdim=True)
        if self.quirk == "beside, numbers":
            return out, out.argmax(-1, keepdim=True)
        if self.quirk.startswith("beside") and self.quirk not in _MAPPINGS:
            return out, out.mean()
        return (out, None) if self.quirk == "tuples" else out


def _choose(x: Tensor) -> Tensor:
    """For each token of states (samples, tokens, hidden), up to 16 tokens like it, none later: int32."""
    tokens = x.shape[1]
    chosen = (x @ x.mT).topk(min(16, tokens), dim=-1).indices
    return torch.minimum(chosen, torch.arange(tokens, device=chosen.device)[:, None]).to(torch.int32)


def _choose_of_many(x: Tensor) -> Tensor:
    """The same as a mask (samples, tokens, tokens) of tokens to read."""
    chosen = _choose(x).long()
    return torch.zeros(*x.shape[:2], x.shape[1], dtype=torch.bool, device=x.device).scatter(-1, chosen, True)


def _mean_of_chosen(x: Tensor, chosen: Tensor) -> Tensor:
    return x[torch.arange(len(x), device=x.device)[:, None, None], chosen.long()].mean(2)


class _Base(nn.Module):
    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.quirk: Quirk = config.quirk
        hidden = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden)
        if self.quirk == "no blocks":
            return
        self.layers = nn.ModuleList(_Block(self.quirk, hidden) for _ in range(config.num_hidden_layers))
        self.layers[0].is_first = self.layers[-1].is_last = True
        if self.quirk == "likely name":
            self.layers_norm = nn.LayerNorm(hidden)
        if self.quirk == "looked at":
            self.scale = nn.LayerNorm(hidden)
        if self.quirk.startswith("where a weight is"):
            self.kinds = nn.Embedding(2, hidden)
        if self.quirk == "outer buffer":
            self.register_buffer("gain", torch.ones(hidden))
        if self.quirk in ("two lists", "side list"):
            self.more = nn.ModuleList(_Block(self.quirk, hidden) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.embed_tokens(ids)
        if self.quirk == "likely name":
            states = self.layers_norm(states)
        if self.quirk == "outer buffer":
            states = states * self.gain
        if self.quirk == "looked at":
            states = states * self.scale.weight
        if self.quirk.startswith("where a weight is"):
            none = torch.zeros((len(ids), 1), dtype=torch.int64, device=self.kinds.weight.device)
            kinds = self.kinds(input=none) if self.quirk.endswith("by name") else self.kinds(none)
            states = states + kinds.to(states.device)
        if self.quirk in _MAPPINGS:
            shared: dict[str, Tensor] = {}
            for block in self._order():
                side = {} if self.quirk == "by name, of its own" else shared
                states = block(states, side) if self.quirk == "beside, without name" else block(states, side=side)
            return states
        beside: Tensor | None = None
        if self.quirk == "by name, of the first":
            entries: dict[str, Tensor] = {}
            for block in self._order():
                states, beside = block(states, side=entries, cache=beside)
            return states
        if self.quirk.startswith("beside"):
            for block in self._order():
                states, beside = block(states, side=beside)
            return states if beside is None or not self.quirk.endswith("to the end") else states + beside
        if self.quirk in ("handed on, in an object", "handed on, in a tensor", "masked in place"):
            side = SimpleNamespace(first=None) if "object" in self.quirk else torch.zeros_like(states)
            for block in self._order():
                states = block(states, side=side)
            return states
        first: Tensor | None = None
        for block in self._order():
            states = block(states, side=first) if self.quirk == "handed on" else self._through(block, states, ids)
            first = states if first is None else first
            if self.quirk == "between":
                states = 2 * states
        return states

    def _order(self) -> list[nn.Module]:
        if self.quirk == "no blocks":
            return []
        blocks = list(self.layers)
        match self.quirk:
            case "backwards":
                return blocks[::-1]
            case "again":
                return [blocks[0], *blocks]
            case "two lists":
                return [*blocks, *self.more]
            case "not all":
                return blocks[:-1]
        return blocks

    def _through(self, block: nn.Module, states: Tensor, ids: Tensor) -> Tensor:
        match self.quirk:
            case "tuples":
                return block(states)[0]
            case "keywords":
                return block(x=states)
            case "of a class":
                return block(states, 0.5) if isinstance(block, _Block) else block(states)
            case "per sample":
                return block(states, side=ids.unsqueeze(-1).float())
            case "per sample, nested":
                return block(states, side={"nested": ids.unsqueeze(-1).float()})
            case "per sample, in an object":
                return block(states, side=_Side(ids.unsqueeze(-1).float()))
            case "per sample, in its own object":
                side = SimpleNamespace(within=_Side(ids.unsqueeze(-1).float()))
                side.me = side
                return block(states, side=side)
            case "cache":
                return block(states, cache=tf.DynamicCache())
            case "per sample, a number":
                return block(states, float(ids[0].float().mean()))
            case "per sample, a number in an object":
                return block(states, SimpleNamespace(nested=float(ids[0].float().mean())))
        return block(states)


class OddModel(tf.PreTrainedModel):
    config_class = OddConfig
    base_model_prefix = "model"

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.model = _Base(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        del use_cache
        return SimpleNamespace(logits=self.lm_head(self.model(input_ids)))


tf.AutoConfig.register("odd", OddConfig, exist_ok=True)
tf.AutoModelForCausalLM.register(OddConfig, OddModel, exist_ok=True)


def build(quirk: Quirk = "", seed: int = 0, **options: Any) -> OddModel:
    """A decoder with that quirk and random weights and buffers; float32, in evaluation mode."""
    torch.manual_seed(seed)
    model = OddModel(OddConfig(quirk, **options))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(torch.randn_like(tensor) * 0.2)
    return model.float().eval()


def save(quirk: Quirk, folder: Path, **options: Any) -> Path:
    """Write such a decoder as an ordinary model folder."""
    build(quirk, **options).save_pretrained(folder)
    return folder
