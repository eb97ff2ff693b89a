"""A Hub model is found by its name and revision, in the cache or by download, or the message says what to do."""

from __future__ import annotations

import json
import pwd
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import _snapshot_download, errors

from reprune.errors import InputError
from reprune.model.locate import at_commit, locate_again, locate_model
from reprune.model.snapshots import hub_commit
from tests import tiny
from tests.model.test_locate_names import LLAMA

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef" * 5


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """owner/tiny as the Hub's library caches it; there is no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(SHA)
    return tiny.save("llama", repository / "snapshots" / SHA)


def test_a_hub_model_in_the_cache_is_found_offline(cached: Path) -> None:
    assert locate_model("owner/tiny") == locate_model(f"owner/tiny@{SHA}") == cached


def test_a_branch_of_a_hub_model_is_found_and_its_commit_told(cached: Path) -> None:
    refs = cached.parent.parent / "refs"
    (refs / "pr").mkdir()
    (refs / "pr" / "3").write_text(OTHER)
    other = tiny.save("llama", cached.parent / OTHER)
    assert locate_model("owner/tiny@main") == cached
    assert locate_model("owner/tiny@pr/3") == other
    assert hub_commit(other) == OTHER
    assert hub_commit(cached.parent) is None
    assert at_commit("owner/tiny", cached) == at_commit("owner/tiny@main", cached) == f"owner/tiny@{SHA}"
    assert at_commit(str(cached), cached) == str(cached)


def test_a_library_that_asks_the_hub_all_the_same_is_told_not_to(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = huggingface_hub.snapshot_download

    def asks(*arguments: Any, local_files_only: bool = False, **more: Any) -> Any:
        if not local_files_only:
            raise errors.OfflineModeIsEnabled("as release 2.1 does for a commit")
        return fetch(*arguments, local_files_only=True, **more)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asks)
    assert locate_model(f"owner/tiny@{SHA}") == cached
    (cached / "config.json").unlink()
    with pytest.raises(InputError, match="owner/tiny"):
        locate_model(f"owner/tiny@{SHA}")


def test_a_cached_hub_model_is_checked_like_a_folder(cached: Path) -> None:
    (cached / "model.safetensors").rename(cached / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"owner/tiny: its weights are pickles"):
        locate_model("owner/tiny")


def test_the_way_out_of_pickles_is_that_of_the_revision(cached: Path) -> None:
    (cached / "model.safetensors").rename(cached / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"owner/tiny@main: .*from_pretrained\('owner/tiny', revision='main'\)\.save"):
        locate_model("owner/tiny@main")


@pytest.mark.parametrize(
    ("files", "downloaded", "message"),
    [
        (["README.md", "a.gguf"], [], r"holds its model only as GGUF; .*'hf download owner/tiny a.gguf --revision v1'"),
        (
            ["a-00001-of-00002.gguf", "mmproj.gguf", "q4.gguf"],
            [],
            r"'hf download owner/tiny q4.gguf --revision v1'",
        ),
        (["b/a.gguf", "config.json"], ["config.json"], r"'hf download owner/tiny b/a.gguf --revision v1'"),
        (["config.json", "pytorch_model.bin"], ["config.json"], r"pickles \(pytorch_model.bin\).*revision='v1'"),
        (["config.json", "a/model.safetensors", "a/b.pt"], ["config.json"], r"no \*.safetensors"),
        (
            ["config.json", "model.fp16.safetensors", "pytorch_model.bin"],
            ["config.json"],
            r"only as a variant \(model\.fp16\.safetensors\)"
            r".*'hf download owner/tiny --revision v1 --local-dir FOLDER', "
            r"rename the file there to model\.safetensors, then give FOLDER",
        ),
        (
            ["config.json", "model.safetensors.index.bf16.json", "model.bf16-00001-of-00002.safetensors"],
            ["config.json"],
            r"only as a variant .*rename the file there to model\.safetensors\.index\.json, then",
        ),
        ([".gitattributes"], [], "has no config.json"),
        (
            ["config.json", "zero_to_fp32.py", "latest", "global_step9/zero_pp_rank_0_mp_rank_00_model_states.pt"],
            ["config.json", "zero_to_fp32.py"],
            r"saved them; 'hf download owner/tiny --revision v1 --local-dir FOLDER', then have "
            r"'python FOLDER/zero_to_fp32\.py FOLDER OUT --safe_serialization' merge them",
        ),
        (
            ["config.json", "pytorch_model_fsdp_0/__0_0.distcp"],
            ["config.json"],
            "--local-dir FOLDER', then have 'accelerate merge-weights FOLDER/pytorch_model_fsdp_0 OUT' merge",
        ),
        (
            ["README.md", "a/config.json", "a/model.safetensors", "b/config.json", "b/model.safetensors"],
            ["a/config.json", "b/config.json"],
            r"there is one in FOLDER/a, FOLDER/b: 'hf download owner/tiny --revision v1 --local-dir FOLDER', then give",
        ),
    ],
)
def test_what_a_hub_model_holds_is_named_where_nothing_of_it_is_wanted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    files: list[str],
    downloaded: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    snapshot = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / SHA
    for file in downloaded:
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_text(json.dumps(LLAMA))
    siblings = [{"rfilename": file} for file in files]
    info = huggingface_hub.ModelInfo(id="owner/tiny", sha=SHA, tags=[], siblings=siblings)
    tree = [huggingface_hub.RepoFile(path=file, size=1, oid="") for file in files]
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", lambda *_, **__: iter(tree))
    monkeypatch.setattr(_snapshot_download, "hf_hub_download", lambda *_, **__: "")  # as if it were in the cache
    with pytest.raises(InputError, match=message):
        locate_model("owner/tiny@v1")
    assert not caplog.records


def raising(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)


def test_a_cached_model_that_lacks_only_what_is_not_read_is_taken(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error: Any = errors.LocalEntryNotFoundError("LICENSE.txt is missing")
    error.snapshot_path = str(cached)
    raising(monkeypatch, error)
    assert locate_model("owner/tiny") == cached
    (cached / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="nor is it whole"):
        locate_model("owner/tiny")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError, r"accept the terms at http.*/owner/tiny, then run 'hf auth login'"),
        (errors.RepositoryNotFoundError, "at revision v1: .* check the name"),
        (errors.RevisionNotFoundError, "has no revision v1"),
        (errors.LocalEntryNotFoundError, "cannot be reached; go online"),
        (RuntimeError, r"download failed \(RuntimeError: \); try again"),
    ],
)
def test_what_the_hub_refuses_is_said_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    raising(monkeypatch, error.__new__(error))  # without a server's response
    with pytest.raises(InputError, match=message):
        locate_model("owner/tiny@v1")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"the Hub does not let you read it \(401\); check HF_TOKEN, or run 'hf auth login'\.$"),
        (403, r"the Hub does not let you read it \(403\); check HF_TOKEN"),
        (429, r"the Hub accepts no more requests for now \(429\); wait some minutes"),
        (500, r"the Hub fails \(500\); try again later"),
        (503, r"the Hub fails \(503\); try again later"),
    ],
)
def test_what_the_hub_answers_is_said_though_the_library_only_misses_files(
    monkeypatch: pytest.MonkeyPatch, status: int, message: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    answered = errors.HfHubHTTPError.__new__(errors.HfHubHTTPError)
    answered.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]
    missing = errors.LocalEntryNotFoundError("not in the cache")
    missing.__cause__ = answered
    for error in (missing, answered):
        raising(monkeypatch, error)
        with pytest.raises(InputError, match=message):
            locate_model("owner/tiny")


def test_what_is_asked_in_place_of_the_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("https_proxy", "http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    def said(endpoint: str, error: Exception) -> str:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        raising(monkeypatch, error)
        with pytest.raises(InputError) as refused:
            locate_model("owner/tiny")
        return str(refused.value).partition("cache, and ")[2]

    mirror, missing = "https://me:secret@mirror.example", errors.LocalEntryNotFoundError("")
    assert said(mirror, missing).startswith("https://mirror.example (HF_ENDPOINT) cannot be reached; go online")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.example")
    assert "(HF_ENDPOINT) cannot be reached through the proxy in HTTPS_PROXY; go online" in said(mirror, missing)
    assert said("http://mirror.example", missing).startswith(
        "http://mirror.example (HF_ENDPOINT) cannot be reached; go"
    )
    monkeypatch.setenv("NO_PROXY", "other.example,.mirror.example")
    assert said(f"{mirror}:8443", missing).startswith("https://mirror.example:8443 (HF_ENDPOINT) cannot be reached; go")
    page = json.JSONDecodeError("Expecting value", "<html>", 0)
    assert said(mirror, page).startswith(
        "a server that is not https://mirror.example (HF_ENDPOINT) answers, such as a proxy"
    )
    assert said("mirror.example", missing) == (
        "HF_ENDPOINT is mirror.example; expected a URL, which begins with https://."
    )


def test_a_hub_model_without_a_home_folder_says_where_it_could_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as for a user without a name in a container
    with pytest.raises(RuntimeError) as error:
        Path.home()
    raising(monkeypatch, error.value)
    with pytest.raises(InputError, match="no home folder to download it to; set HF_HOME to a folder"):
        locate_model("owner/tiny")


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize(
    ("model", "message"),
    [("owner/other", "HF_HUB_OFFLINE is set; go online"), ("no--such", "nor a valid Hub id")],
)
def test_what_the_cache_does_not_hold_is_refused_offline(model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        locate_model(model)


def test_a_model_that_is_no_longer_where_it_was_is_taken_from_where_it_is(cached: Path, tmp_path: Path) -> None:
    """A Hub model in another cache is that of its commit, wherever its branch is; one given now takes precedence."""
    (cached.parent.parent / "refs" / "main").write_text(OTHER)
    gone = tmp_path / "old" / "snapshots" / SHA
    assert locate_again("owner/tiny@main", gone) == cached
    assert locate_again("owner/tiny", gone, str(cached)) == cached
    assert locate_again(str(cached), tmp_path / "gone") == cached
    assert locate_again("owner/tiny", cached, "another") == cached, "it is where it was"
    shutil.rmtree(cached)
    with pytest.raises(InputError, match=f"^owner/tiny at revision {SHA}: no folder .*or a link to it.*had it: {gone}"):
        locate_again("owner/tiny", gone)


def test_of_a_commit_that_is_no_longer_whole_the_rest_is_fetched(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may have removed the largest files from the cache."""
    weights = cached / "model.safetensors"
    content = weights.read_bytes()

    def fetch(model: str, *, revision: str, **_: Any) -> str:
        assert (model, revision) == ("owner/tiny", SHA)
        weights.write_bytes(content)
        return str(cached)

    weights.unlink()
    # Older releases of huggingface_hub notice that a file is gone; newer ones return the folder.
    seen = rf"( at revision {SHA}: no folder here, nor is it whole in the |@{SHA}: holds no \*\.safetensors )"
    with pytest.raises(InputError, match=rf"^owner/tiny{seen}.*a link to it"):
        locate_again("owner/tiny", cached)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert locate_again("owner/tiny", cached) == cached
    assert weights.exists()


def test_the_hub_is_not_asked_for_what_was_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hub models without an owner have such names too."""
    raising(monkeypatch, AssertionError("asked"))
    with pytest.raises(InputError, match="gpt2: the model that this run prunes is no longer there"):
        locate_again("gpt2", tmp_path / "gpt2")
