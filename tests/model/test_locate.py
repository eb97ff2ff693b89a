"""A GGUF file is converted once; one that cannot be used is refused."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import shutil
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
import transformers
from transformers import modeling_gguf_pytorch_utils

from reprune.errors import InputError, UnsupportedModelError
from reprune.files.cache import cache_root, locked_cache
from reprune.model.locate import locate_model
from tests import tiny
from tests.doors.demo.test_model import write_gguf

TEXT = "Hello,  world: the statement\n\n\tif x:\n é <s>"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def load(folder: Path) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder), tokenizer


def test_a_gguf_file_becomes_a_folder_with_the_models_weights_in_bfloat16(gguf: Path) -> None:
    model, _ = load(locate_model(str(gguf)))
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    original = tiny.build("llama").bfloat16()
    assert model.state_dict().keys() == original.state_dict().keys()
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_converted_model_may_be_read_by_whom_other_files_may(gguf: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other").touch()
    assert {path.stat().st_mode for path in locate_model(str(gguf)).iterdir()} == {other.stat().st_mode}


def test_the_converted_model_is_the_one_read_from_a_quantized_gguf_rounded(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "q8.gguf", quantized=True)
    direct = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    model, _ = load(locate_model(str(file)))
    ids = torch.arange(3, 43).view(1, -1)
    with torch.no_grad():
        expected, logits = direct(ids).logits, model.float()(ids).logits
        assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
        for parameter in direct.parameters():
            parameter.copy_(parameter.bfloat16())
        assert torch.equal(logits, direct(ids).logits)


def test_the_converted_tokenizer_is_the_models(gguf: Path) -> None:
    _, tokenizer = load(locate_model(str(gguf)))
    original = tiny.tokenizer()
    ids = tokenizer(TEXT).input_ids
    assert ids == original(TEXT).input_ids
    assert ids[0] == tokenizer.bos_token_id == 1 and ids[-1] == 1  # BOS is added, and <s> in a text stays one token
    assert tokenizer.decode(tokenizer(TEXT, add_special_tokens=False).input_ids) == TEXT
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "<pad>")


@pytest.mark.parametrize(
    ("bos", "split", "first"),
    [(None, "llama-bpe", [1]), (False, "llama-bpe", []), (None, "qwen2", []), (None, None, []), (True, "qwen2", [1])],
)
def test_texts_begin_with_bos_where_llama_cpp_puts_it(
    bos: bool | None, split: str | None, first: list[int], tmp_path: Path
) -> None:
    _, tokenizer = load(locate_model(str(write_gguf(tmp_path / "model.gguf", bos=bos, split=split))))
    rest = tokenizer("one", add_special_tokens=False).input_ids
    assert tokenizer("one").input_ids == first + rest


def test_a_conversion_is_announced_once_and_leaves_no_trace_but_its_result(
    gguf: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logging: Any = transformers.utils.logging
    reader: Any = modeling_gguf_pytorch_utils
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), reader.tqdm
    said: list[str] = []
    folder = locate_model(str(gguf), notify=said.append)
    assert locate_model(str(gguf), notify=said.append) == folder
    assert said == ["converting tiny.gguf once; the result is kept in the cache"]
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == [folder.name]
    assert folder.name.startswith("tiny-") and folder.name.endswith("-tf5")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), reader.tqdm) == before


@pytest.mark.parametrize("lacking", ["gguf", "accelerate"])
def test_without_a_package_that_reads_gguf_the_extra_is_named(
    lacking: str, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacking else find(name))
    with pytest.raises(
        InputError, match=r'tiny\.gguf: reading GGUF files needs other packages: pip install "reprune\[gguf'
    ):
        locate_model(str(gguf))


def test_the_folder_follows_the_content_not_the_name(tmp_path: Path) -> None:
    first = locate_model(str(write_gguf(tmp_path / "model.gguf")))
    assert locate_model(str(write_gguf(tmp_path / "model.gguf", quantized=True))) != first


def test_files_beside_a_gguf_are_not_mixed_into_its_model(gguf: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "adapter_config.json"):
        (tmp_path / name).write_text("{")
    file = tmp_path / "a name with spaces.GGUF"
    file.write_bytes(gguf.read_bytes())
    assert load(locate_model(str(file)))[1]("a").input_ids[0] == 1


def test_a_conversion_that_was_killed_is_not_taken_for_a_finished_one(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", die)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if the process were gone
        with pytest.raises(KeyboardInterrupt):
            locate_model(str(gguf))
    (partial_folder,) = cache.glob(".*.partial")
    assert list(partial_folder.glob("write/*.safetensors"))
    load(locate_model(str(gguf)))
    assert not partial_folder.exists()


@pytest.mark.parametrize("lost", ["*.safetensors", "config.json", "tok*", "tokenizer.json"])
def test_what_a_cleaner_of_caches_left_of_a_conversion_is_converted_anew(lost: str, gguf: Path) -> None:
    folder = locate_model(str(gguf))
    for path in folder.glob(lost):
        path.unlink()
    said: list[str] = []
    assert locate_model(str(gguf), notify=said.append) == folder
    assert said == ["converting tiny.gguf once; the result is kept in the cache"]
    load(folder)


def test_what_was_converted_before_there_were_lists_is_not_converted_anew(gguf: Path) -> None:
    folder = locate_model(str(gguf))
    (folder / ".converted").unlink()
    said: list[str] = []
    assert locate_model(str(gguf), notify=said.append) == folder
    assert said == []


def test_a_second_process_waits_for_the_first(gguf: Path, cache: Path) -> None:
    said: SimpleQueue[str] = SimpleQueue()
    found: list[Path] = []
    folder = locate_model(str(gguf))
    folder.rename(cache / "aside")
    second = threading.Thread(target=lambda: found.append(locate_model(str(gguf), notify=said.put)))
    with locked_cache(folder.name):
        second.start()
        assert said.get(timeout=10) == f"waiting for another process that is making {folder.name}"
        (cache / "aside").rename(folder)
    second.join(10)
    assert found == [folder]
    assert said.empty()


def test_a_missing_gguf_package_names_the_extra(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r'pip install "reprune\[gguf\]"'):
        locate_model(str(gguf))


def test_a_disk_that_cannot_be_written_is_an_input_error(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(InputError, match=r"No space left.*REPRUNE_CACHE"):
        locate_model(str(gguf))


@pytest.mark.parametrize("kept", [4, 20, 2_000, 60_000, -1])
def test_a_gguf_file_that_is_cut_short_is_refused(gguf: Path, tmp_path: Path, cache: Path, kept: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cut\.gguf: is damaged.*download it again"):
        locate_model(str(tmp_path / "cut.gguf"))
    assert not [path for path in cache.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "nonesuch"}, "architecture nonesuch.*safetensors"),
        ({"without": "blk.1.ffn_up"}, r"lacks 1 tensors \(model.layers.1.mlp.up_proj.weight\)"),
        ({"factor": 8.0}, "rotary frequencies are scaled"),
        ({"table": 2.0}, "rotary frequencies are scaled"),
    ],
)
def test_a_gguf_that_would_become_another_model_is_refused(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        locate_model(str(write_gguf(tmp_path / "odd.gguf", **options)))


def test_more_blocks_than_tensors_are_not_made(tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    key = b"llama.block_count" + (4).to_bytes(4, "little")
    (tmp_path / "tiny.gguf").write_bytes(content.replace(key + b"\3\0\0\0", key + b"\xff" * 4))
    with pytest.raises(UnsupportedModelError, match=r"tiny\.gguf: has only 30 tensors for 4294967295 blocks; use"):
        locate_model(str(tmp_path / "tiny.gguf"))


def test_rotary_scales_of_one_are_no_scales(tmp_path: Path) -> None:
    load(locate_model(str(write_gguf(tmp_path / "plain.gguf", factor=1.0, table=1.0))))


def test_what_is_no_gguf_or_but_a_part_of_one_is_refused(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "m-00002-of-00003.gguf").write_bytes(gguf.read_bytes())
    with pytest.raises(InputError, match="--merge"):
        locate_model(str(tmp_path / "m-00002-of-00003.gguf"))
    (tmp_path / "model.gguf").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="is not a GGUF file"):
        locate_model(str(tmp_path / "model.gguf"))


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("REPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "reprune"
    for ignored in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_root() == Path.home() / ".cache" / "reprune"


def test_a_cache_that_cannot_be_made_is_an_input_error(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRUNE_CACHE", str(gguf / "below-a-file"))
    with pytest.raises(InputError, match="set REPRUNE_CACHE"):
        locate_model(str(gguf))


def test_a_link_in_place_of_a_lock_empties_no_file(tmp_path: Path, cache: Path) -> None:
    cache.mkdir()
    (tmp_path / "theirs").write_text("theirs")
    (cache / ".name.lock").symlink_to(tmp_path / "theirs")
    with locked_cache("name"):
        assert (tmp_path / "theirs").read_text() == "theirs"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_cache_on_a_file_system_without_locks_is_an_input_error(
    number: int, gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    said = (
        rf"{cache}: this cache cannot be locked against other processes here \({os.strerror(number)}\); set "
        "REPRUNE_CACHE to a folder on another disk"
    )
    with pytest.raises(InputError, match=said):
        locate_model(str(gguf))
