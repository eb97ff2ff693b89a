"""A local folder is checked, a Hub id fetched, a GGUF file converted once; what cannot be used is refused."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH
from gguf.quants import quantize

from reprune.errors import InputError, UnsupportedModelError
from reprune.model import locate
from reprune.model.locate import cache_root, locate_model, locked_cache
from tests import tiny

TEXT = "Hello,  world: the statement\n\n\tif x:\n é <s>"
SHA = "0123456789abcdef0123456789abcdef01234567"


def write_gguf(
    file: Path,
    *,
    quantized: bool = False,
    without: str = "",
    architecture: str = "llama",
    rope_factor: float | None = None,
    rope_table: float | None = None,
) -> Path:
    """The tiny Llama and its tokenizer as a GGUF file, in float32 or Q8_0."""
    model = tiny.build("llama")
    config = model.config
    writer = GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    if rope_factor is not None:
        writer.add_rope_scaling_factor(rope_factor)
    bpe = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index < 3 else 1 for index in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        assert gguf_name is not None
        if without and without in gguf_name:
            continue
        if ".q_proj." in name or ".k_proj." in name:  # llama.cpp interleaves the halves of each head
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        if quantized and tensor.dim() == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name, quantize(tensor.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name, tensor.contiguous().numpy())
    if rope_table is not None:
        writer.add_tensor("rope_freqs.weight", torch.full((4,), rope_table).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def load(folder: Path) -> tuple[Any, Any]:
    return (
        transformers.AutoModelForCausalLM.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


def folder_of(path: Path, config: object, *files: str) -> Path:
    """A folder with a config.json, unless it is None, and empty files."""
    path.mkdir()
    if config is not None:
        (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for file in files:
        (path / file).touch()
    return path


# --- GGUF files


def test_a_gguf_file_becomes_a_folder_with_the_models_weights_in_bfloat16(gguf: Path) -> None:
    model, _ = load(locate_model(str(gguf)))
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    original = tiny.build("llama").bfloat16()
    assert model.state_dict().keys() == original.state_dict().keys()
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_the_converted_model_gives_the_logits_of_the_one_read_from_a_quantized_gguf(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "q8.gguf", quantized=True)
    direct = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    )
    model, _ = load(locate_model(str(file)))
    ids = torch.arange(3, 43).view(1, -1)
    with torch.no_grad():
        expected, rounded = direct(ids).logits, model.float()(ids).logits
    assert (rounded - expected).abs().max() < 0.02 * expected.abs().max()
    assert torch.equal(model.lm_head.weight, direct.lm_head.weight.bfloat16().float())


def test_the_converted_tokenizer_is_the_models(gguf: Path) -> None:
    _, tokenizer = load(locate_model(str(gguf)))
    original = tiny.tokenizer()
    ids = tokenizer(TEXT).input_ids
    assert ids == original(TEXT).input_ids
    assert ids[0] == tokenizer.bos_token_id == 1 and ids[-1] == 1  # BOS is added, <s> in a text kept whole
    assert tokenizer.decode(tokenizer(TEXT, add_special_tokens=False).input_ids) == TEXT
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "<pad>")


def test_a_conversion_is_announced_once_and_leaves_no_trace_but_its_result(
    gguf: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logging: Any = transformers.utils.logging
    reader: Any = transformers.modeling_gguf_pytorch_utils
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), reader.tqdm
    said: list[str] = []
    folder = locate_model(str(gguf), notify=said.append)
    assert locate_model(str(gguf), notify=said.append) == folder
    assert said == ["converting tiny.gguf once; the result is kept in the cache"]
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == [folder.name]
    assert folder.name.startswith("tiny-") and folder.name.endswith("-tf5")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), reader.tqdm) == before


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
        patch.setattr(locate.shutil, "rmtree", lambda *_, **__: None)  # as if the process were gone
        with pytest.raises(KeyboardInterrupt):
            locate_model(str(gguf))
    (partial_folder,) = cache.glob(".*.partial")
    assert list(partial_folder.glob("write/*.safetensors"))
    load(locate_model(str(gguf)))
    assert not partial_folder.exists()


def test_a_second_process_waits_for_the_first(gguf: Path, cache: Path) -> None:
    said: list[str] = []
    waiting = threading.Event()
    found: list[Path] = []

    def notify(sentence: str) -> None:
        said.append(sentence)
        waiting.set()

    folder = locate_model(str(gguf))
    folder.rename(cache / "aside")
    with locked_cache(folder.name):
        second = threading.Thread(target=lambda: found.append(locate_model(str(gguf), notify=notify)))
        second.start()
        assert waiting.wait(10)
        (cache / "aside").rename(folder)
    second.join(10)
    assert found == [folder]
    assert said == [f"waiting for another process that is making {folder.name}"]


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


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="is no GGUF file"):
        locate_model(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("kept", [4, 20, 2_000, 60_000, -1])
def test_a_gguf_file_that_is_cut_short_is_refused(gguf: Path, tmp_path: Path, cache: Path, kept: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cut\.gguf: is damaged.*download it again"):
        locate_model(str(tmp_path / "cut.gguf"))
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_gguf_file_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "odd.gguf", architecture="nonesuch")
    with pytest.raises(UnsupportedModelError, match=r"architecture nonesuch.*safetensors"):
        locate_model(str(file))


def test_a_gguf_file_without_all_tensors_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "lacking.gguf", without="blk.1.ffn_up")
    with pytest.raises(UnsupportedModelError, match=r"lacks 1 tensors \(model.layers.1.mlp.up_proj.weight\)"):
        locate_model(str(file))


@pytest.mark.parametrize("options", [{"rope_factor": 8.0}, {"rope_table": 2.0}])
def test_scaled_rotary_frequencies_that_would_be_lost_are_refused(tmp_path: Path, options: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="rotary frequencies are scaled"):
        locate_model(str(write_gguf(tmp_path / "long.gguf", **options)))


def test_rotary_scales_of_one_are_no_scales(tmp_path: Path) -> None:
    load(locate_model(str(write_gguf(tmp_path / "plain.gguf", rope_factor=1.0, rope_table=1.0))))


def test_a_later_part_of_a_split_gguf_is_refused(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "m-00002-of-00003.gguf").write_bytes(gguf.read_bytes())
    with pytest.raises(InputError, match="--merge"):
        locate_model(str(tmp_path / "m-00002-of-00003.gguf"))


# --- the cache's place


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


# --- local folders


def test_an_ordinary_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    assert locate_model(str(folder)) == folder
    monkeypatch.chdir(folder)
    assert locate_model(".") == folder
    sharded = tiny.save("llama", tmp_path / "sharded", max_shard_size="40kB")
    assert locate_model(str(sharded)) == sharded


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        (None, [], "has no config.json"),
        (None, ["model.safetensors"], "has no config.json"),
        (None, ["adapter_config.json", "adapter_model.safetensors"], "merge_and_unload"),
        (None, ["b.gguf", "a.gguf"], r"name the file itself: .*/a\.gguf"),
        (LLAMA, ["a.gguf"], r"name the file itself: .*/a\.gguf"),
        (LLAMA, ["pytorch_model.bin"], r"pickles \(pytorch_model.bin\).*save_pretrained"),
        (LLAMA, ["pytorch_model-00001-of-00002.bin"], "pickles"),
        (LLAMA, ["consolidated.00.pth"], "pickles"),
        (LLAMA, ["tf_model.h5"], r"no \*.safetensors"),
        (LLAMA, ["adapter_model.safetensors"], r"no \*.safetensors"),
        (LLAMA, ["model.safetensors.index.json"], "none of its"),
        ("{", ["model.safetensors"], "config.json cannot be read"),
        ("[1]", ["model.safetensors"], "config.json cannot be read"),
        ({"model_type": "bert"}, ["model.safetensors"], "bert does not predict the next token"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, ["model.safetensors"], "BertModel does not"),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            ["model.safetensors"],
            "LlamaForSequenceClassification does not predict",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    tmp_path: Path, config: object, files: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        locate_model(str(folder_of(tmp_path / "model", config, *files)))


@pytest.mark.parametrize(
    "name", ["./none", "/none/at/all", "~/none-such", "a/b/c", "a/", "", " ", "here/none", "a\\b"]
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    with pytest.raises(InputError, match="no such folder"):
        locate_model(name)


def test_a_missing_gguf_file_and_a_revision_of_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        locate_model("owner/model.gguf")
    with pytest.raises(InputError, match="revision"):
        locate_model(str(tmp_path), revision="main")


# --- the Hub: the library itself, against a server on this machine


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a download needs: owner/tiny, and two models that one may not read."""

    folder: ClassVar[Path]
    sent: ClassVar[list[str]]

    def do_GET(self) -> None:  # the library's name
        path = self.path.partition("?")[0]
        refusal = {"gated": (403, "GatedRepo"), "secret": (401, "RepoNotFound")}
        for name, (status, code) in refusal.items():
            if f"/owner/{name}" in path:
                return self._send(b"{}", status, {"X-Error-Code": code})
        if path.endswith("/revision/none"):
            return self._send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        if "/revision/" in path:
            return self._send(json.dumps({"id": "owner/tiny", "sha": SHA, "siblings": []}).encode())
        if "/tree/" in path:
            entries = [
                {
                    "type": "file",
                    "path": str(file.relative_to(self.folder)),
                    "size": file.stat().st_size,
                    "oid": file.name,
                }
                for file in self.folder.rglob("*")
                if file.is_file()
            ]
            return self._send(json.dumps(entries).encode())
        file = self.folder / path.partition(f"/resolve/{SHA}/")[2]
        if self.command == "GET":
            self.sent.append(file.name)
        return self._send(file.read_bytes(), 200, {"ETag": f'"{file.name}"', "X-Repo-Commit": SHA})

    do_HEAD = do_GET  # noqa: N815  # the library's name

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.folder = tiny.save("llama", tmp_path / "origin")
    Hub.sent = []
    (Hub.folder / "pytorch_model.bin").write_text("a pickle")
    (Hub.folder / "model.fp16.safetensors").write_text("a second copy")
    (Hub.folder / "onnx").mkdir()
    (Hub.folder / "onnx" / "model.safetensors").write_text("a third")
    (Hub.folder / "LICENSE.txt").write_text("free")
    constants = huggingface_hub.constants
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        try:
            yield Hub
        finally:
            huggingface_hub.close_session()
            server.shutdown()
            thread.join()


def test_a_hub_model_is_downloaded_without_pickles_and_found_again_offline(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = locate_model("owner/tiny")
    assert load(folder)[1].bos_token_id == 1
    assert sorted(hub.sent) == [
        *("LICENSE.txt", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert locate_model("owner/tiny") == folder
    (folder / "LICENSE.txt").unlink()  # as in a cache that another program filled with what it needs
    assert locate_model("owner/tiny") == folder
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"owner/tiny: .*HF_HUB_OFFLINE"):
        locate_model("owner/tiny")


def test_a_hub_model_of_pickles_is_refused(hub: type[Hub]) -> None:
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"owner/tiny: .*\.safetensors"):
        locate_model("owner/tiny")
    assert "pytorch_model.bin" not in hub.sent


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("owner/gated", None, r"accept the terms at http.*/owner/gated, then run 'hf auth login'"),
        ("owner/secret", None, "check the name"),
        ("owner/tiny", "none", "has no revision none"),
        ("no--such", None, "nor a valid Hub id"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_refuses_is_said_with_its_remedy(model: str, revision: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        locate_model(model, revision=revision)


def test_a_download_that_breaks_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any, **__: Any) -> None:
        raise RuntimeError("cut off")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cut)
    with pytest.raises(InputError, match=r"download failed \(RuntimeError: cut off\); try again"):
        locate_model("owner/tiny")


@pytest.mark.parametrize(
    ("offline", "cause"), [(True, "HF_HUB_OFFLINE is set"), (False, "cannot be reached")]
)
def test_without_a_network_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, cause: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(InputError, match=f"owner/model at revision v1: .*{cause}; go online"):
        locate_model("owner/model", revision="v1")
