"""A whole model takes the memory that is said of it, once, and gives it back when nobody uses it any more."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprune.model import whole
from reprune.model.block import Precision
from reprune.model.checkpoint import Checkpoint
from reprune.model.garbage import no_search
from reprune.model.whole import collect_models, load_model, whole_bytes

from .. import tiny

CPU = torch.device("cpu")
BFLOAT16 = Precision(torch.bfloat16)


def test_a_head_that_is_tied_to_the_embedding_stays_so(tmp_path: Path) -> None:
    """Two parameters, even of the same memory, would be two copies on a GPU."""
    folder = tiny.save("gemma3", tmp_path / "model", torch.bfloat16)
    model = load_model(folder, CPU, precision=BFLOAT16)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    held = sum(parameter.nbytes for parameter in model.parameters())
    assert held == pytest.approx(whole_bytes(Checkpoint(folder), BFLOAT16), rel=0.05)  # norms are float32


def test_a_mixture_takes_what_is_said_of_it(tmp_path: Path) -> None:
    folder = tiny.save("mixtral", tmp_path / "model", torch.bfloat16)
    held = sum(parameter.nbytes for parameter in load_model(folder, CPU, precision=BFLOAT16).parameters())
    assert held == pytest.approx(whole_bytes(Checkpoint(folder), BFLOAT16), rel=0.01)


def test_what_it_takes_is_that_of_float32_unless_products_and_all_weights_are_in_half(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model", torch.bfloat16)
    numbers = sum(parameter.numel() for parameter in tiny.build("llama").parameters())
    counted = [whole_bytes(Checkpoint(folder), precision) for precision in (BFLOAT16, Precision())]
    assert counted == [2 * numbers, 4 * numbers]
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"].half()}, file, metadata={"format": "pt"})
    assert whole_bytes(Checkpoint(folder), BFLOAT16) == 4 * numbers


def test_a_whole_model_that_nobody_uses_is_given_back(folder_of: Callable[[str], Path]) -> None:
    gc.collect()
    with no_search():  # so that nothing else collects it
        model = load_model(folder_of("llama"), torch.device("cpu"))
        model.itself = [model]
        gone = weakref.ref(model)
        collect_models()
        assert gone() is model
        del model
        assert gone() is not None
        collect_models()
        assert gone() is None


@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float32], ids=str)
def test_all_its_weights_go_with_it_at_once(saved: torch.dtype, tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model", saved)
    with no_search():
        model = load_model(folder, CPU, precision=BFLOAT16)
        weights = {name: weakref.ref(parameter) for name, parameter in model.named_parameters()}
        with torch.no_grad(), BFLOAT16.on(CPU):
            model(torch.arange(8)[None])
        del model
        assert [name for name, weight in weights.items() if weight() is not None] == []


def test_a_part_of_it_that_refers_to_itself_is_given_back_when_the_model_is_gone(
    folder_of: Callable[[str], Path],
) -> None:
    gc.collect()
    with no_search():
        model = load_model(folder_of("llama"), torch.device("cpu"))
        part = model.get_input_embeddings()
        part.__dict__["itself"] = [part]
        gone, part_gone = weakref.ref(model), weakref.ref(part)
        model.__dict__.clear()  # as after an earlier collection
        del model, part
        assert gone() is None and part_gone() is not None
        collect_models()
        assert part_gone() is None


def test_where_no_model_was_loaded_nothing_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "_was_loaded", Event())
    monkeypatch.setattr(gc, "collect", lambda: pytest.fail("everything was searched through"))
    collect_models()
