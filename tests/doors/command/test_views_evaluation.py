"""A measurement is shown with all that decides it, in 80 columns, whatever its size."""

from __future__ import annotations

import pytest

from reprune.doors.command.views_evaluation import show_against, show_perplexity
from reprune.doors.evaluation.against import AgainstDense
from reprune.doors.evaluation.perplexity import Perplexity
from reprune.engine.compare import BlockError

Output = pytest.CaptureFixture[str]


def _wikitext2(bos: bool) -> Perplexity:
    return Perplexity(
        perplexity=5.4721, model="Llama-2-7b-hf", fingerprint="b" * 64, text="wikitext2", text_sha256="a" * 64,
        protocol="paper", seqlen=2048, windows=141, tokens=141 * 2047, bos=bos, begun=bos, precision="bfloat16",
        weights_dtype="float16",
    )  # fmt: skip


def test_a_perplexity_comes_with_its_protocol(here: object, capfd: Output) -> None:
    show_perplexity(_wikitext2(bos=False), quiet=False)
    assert capfd.readouterr().out.splitlines() == [
        "perplexity 5.4721",
        "model      Llama-2-7b-hf, fingerprint bbbbbbbbbbbb",
        "weights    saved in float16, products in bfloat16",
        "text       wikitext2, sha256 aaaaaaaaaaaa",
        "protocol   paper: 141 windows of 2048 tokens (no BOS, 2048), not overlapping",
        "predicted  288,627 tokens",
    ]


def test_the_protocol_of_the_fields_benchmark_fits_80_columns(here: object, capfd: Output) -> None:
    show_perplexity(_wikitext2(bos=True), quiet=False)
    assert [line for line in capfd.readouterr().out.splitlines() if len(line) > 80] == []


def _against(embedding: float) -> AgainstDense:
    return AgainstDense(
        model="sparse", fingerprint="b" * 64, dense="Llama-2-70b-hf", dense_fingerprint="c" * 64, text="wikitext2",
        text_sha256="a" * 64, protocol="paper", seqlen=2048, windows=141, bos=True, begun=True, precision="bfloat16",
        embedding=embedding,
        blocks=tuple(BlockError(index, 43_210.9 * index, 0.0123 * index, 0.5) for index in range(80)),
    )  # fmt: skip


def test_many_blocks_fit_80_columns_and_their_numbers_stand_under_each_other(here: object, capfd: Output) -> None:
    show_against(_against(0.0), quiet=False)
    lines = capfd.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert lines[4] == "block  sparsity  normalized error  relative error"
    assert lines[5] == "    0    50.0 %                 0          0.00 %"
    assert lines[-2] == "   79    50.0 %         3.414e+06          97.2 %"
    assert lines[-1] == "last block 79: the error has 97.2 % of the power of the dense output"


def test_an_embedding_that_differs_is_said(here: object, capfd: Output) -> None:
    show_against(_against(0.011), quiet=False)
    assert "embedding  differs: relative error 1.10 % before any block" in capfd.readouterr().out.splitlines()
