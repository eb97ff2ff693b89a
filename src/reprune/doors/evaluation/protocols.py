"""Cuts texts into windows for measurements, by named protocols.

A name means one thing: a protocol that cannot be followed exactly for a model or a text is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

from reprune.doors.formats import counted
from reprune.doors.given import A_SOURCE, whole_number
from reprune.errors import InputError, of_type
from reprune.model.bare import longest
from reprune.model.snapshots import called
from reprune.planning.documents import Documents, said_unread, text_sha256
from reprune.planning.samples import evaluation_windows
from reprune.planning.sources import find_source, load_documents, parse_source
from reprune.planning.tokenizer import load_tokenizer
from reprune.planning.tokens import beginning

CUSTOM = "custom"  # the name of measurements by no protocol


@final
@dataclass(frozen=True)
class Protocol:
    """The length of windows, their number, and how they begin."""

    name: str
    seqlen: int  # tokens per window
    windows: int | None = None  # how many, from the first; None: all
    model_length: bool = False  # the model's longest sequence instead of seqlen, if it is shorter
    begun_once: bool = False  # the tokenizer's beginning, such as BOS, is only before the first window

    def length(self, limit: int | None, model: str) -> int:
        """The tokens per window for a model whose longest sequence is `limit` tokens (None: there is no limit).

        Raises:
            InputError: the protocol cannot be followed exactly.
        """
        alike = [one for one in PROTOCOLS.values() if one.begun_once == self.begun_once]
        if self.model_length:
            if limit is None:
                fixed = next(one.name for one in alike if not one.model_length)
                raise InputError(
                    f"--protocol {self.name}: its windows have the model's full length, but the config of {model} "
                    f"names none; give --seqlen, or --protocol {fixed}."
                )
            return min(self.seqlen, limit)
        if limit is not None and limit < self.seqlen:
            fitting = [one.name for one in alike if one.model_length or one.seqlen <= limit]
            raise InputError(
                f"--protocol {self.name}: its windows have {self.seqlen} tokens, but {model} takes at most {limit}; "
                f"use --protocol {' or '.join(fitting)}, or --seqlen {limit}."
            )
        return self.seqlen


WANDA = Protocol("wanda", 4096, model_length=True)
PAPER = Protocol("paper", 2048)
SHORT = Protocol("short", 512, 12)
PUBLISHED = Protocol("published", 4096, model_length=True, begun_once=True)
GPTQ = Protocol("gptq", 2048, begun_once=True)
PROTOCOLS = {protocol.name: protocol for protocol in (WANDA, PAPER, SHORT, PUBLISHED, GPTQ)}


@final
@dataclass(frozen=True)
class Cut:
    """The windows that were asked for: a protocol, or a length and a number."""

    protocol: Protocol | None
    seqlen: int | None
    max_windows: int | None

    @staticmethod
    def of(protocol: str | None, seqlen: int | None, max_windows: int | None) -> Cut:
        """Raises `InputError` for an unknown protocol, or one that is given together with a length or a number."""
        seqlen, max_windows = whole_number("--seqlen", seqlen), whole_number("--windows", max_windows)
        if max_windows is not None and max_windows < 1:
            raise InputError(f"--windows {max_windows}: expected at least 1.")
        if protocol is None:
            return Cut(None, seqlen, max_windows)
        if protocol not in PROTOCOLS:
            raise InputError(f"--protocol {protocol}: expected {', '.join(PROTOCOLS)}; or give --seqlen and --windows.")
        for flag, given in (("--seqlen", seqlen), ("--windows", max_windows)):
            if given is not None:
                raise InputError(
                    f"--protocol {protocol}: sets the windows itself; leave out either {flag} {given} or --protocol."
                )
        return Cut(PROTOCOLS[protocol], None, PROTOCOLS[protocol].windows)

    def settle(self, limit: int | None, model: str) -> tuple[str, int]:
        """The protocol's name and the tokens per window for a model whose longest sequence is `limit` tokens.

        Raises:
            InputError: the model does not accept such windows.
        """
        if self.protocol is not None:
            return self.protocol.name, self.protocol.length(limit, model)
        if self.seqlen is None:
            seqlen = min(PAPER.seqlen, limit or PAPER.seqlen)
            return PAPER.name if (seqlen, self.max_windows) == (PAPER.seqlen, PAPER.windows) else CUSTOM, seqlen
        if limit is not None and self.seqlen > limit:
            raise InputError(f"--seqlen {self.seqlen}: {model} takes at most {limit} tokens; give that or less.")
        if self.seqlen < 2:
            raise InputError(f"--seqlen {self.seqlen}: expected at least 2, as the first token is not predicted.")
        return CUSTOM, self.seqlen


@final
@dataclass(frozen=True, eq=False)
class CutText:
    """A text cut into a model's windows, with all that decides it."""

    ids: Tensor  # (windows, tokens), int64
    text: str
    text_sha256: str
    protocol: str
    bos: bool  # whether each window begins with the beginning-of-sequence token
    begun: bool  # whether the first one does
    beginning: int  # tokens at the start of each window that are not part of the text

    @property
    def running(self) -> Tensor:
        """The text's own tokens, (1, tokens); each window continues where the one before it ends."""
        return self.ids[:, self.beginning :].reshape(1, -1)

    def record(self) -> dict[str, Any]:
        """All fields except the tokens, by the field names of `Measured`."""
        windows, seqlen = self.ids.shape
        named = {"text": self.text, "text_sha256": self.text_sha256, "protocol": self.protocol}
        return {**named, "seqlen": seqlen, "windows": windows, "bos": self.bos, "begun": self.begun}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measurement of a model on a text, with all that decides its result."""

    model: str
    fingerprint: str  # of the model's configuration and weights
    text: str
    text_sha256: str
    protocol: str  # its name, or "custom"
    seqlen: int  # tokens per window
    windows: int
    bos: bool  # whether each window begins with the beginning-of-sequence token
    begun: bool  # whether the first one does
    precision: str  # of the products
    calibration_overlap: float | None = None  # the share of its calibration data in the text; None: unknown

    def record(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def describe(measured: Mapping[str, Any]) -> str:
    """What a record was measured on, as "short: 12 windows of 512 tokens (BOS + 511), not overlapping"."""
    seqlen = measured["seqlen"]
    start = f"BOS + {seqlen - 1}" if measured["bos"] else "BOS once" if measured["begun"] else f"no BOS, {seqlen}"
    windows = counted(measured["windows"], "window")
    return f"{measured['protocol']}: {windows} of {seqlen} tokens ({start}), not overlapping"


def check_text(source: str | os.PathLike[str]) -> None:
    """Raise `InputError` if a SOURCE can be no text to measure on, or has a COUNT; opens nothing."""
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"text: expected {A_SOURCE}, got {of_type(source)}.")
    spec = parse_source(os.fspath(source))
    if spec.count is not None:
        raise InputError(f"--text {source}: takes no COUNT; use --windows to read only the start of a text.")
    find_source(spec.name)


def open_text(source: str | os.PathLike[str]) -> Documents:
    """The test split of a SOURCE; raises `InputError` if it cannot be read or has a COUNT."""
    check_text(source)
    return load_documents(parse_source(os.fspath(source)).name, "test")


def cut_text(
    folder: Path,
    documents: Documents,
    cut: Cut,
    trust_remote_code: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> CutText:
    """The windows of a text, tokenized by a model folder's tokenizer.

    `notify` is called if there are fewer windows than asked for, or if files of a folder were not read.

    Raises:
        InputError: the text is too short for the cut, or its windows are too long for the model.
    """
    limit = longest(folder, trust_remote_code)
    protocol, seqlen = cut.settle(limit, called(folder))
    tokenizer = load_tokenizer(folder, trust_remote_code)
    once = cut.protocol is not None and cut.protocol.begun_once
    ids = evaluation_windows(tokenizer, documents, seqlen, cut.max_windows or documents.windows, once)
    if cut.protocol is not None and len(ids) < (needed := cut.protocol.windows or 0):
        raise InputError(
            f"--protocol {protocol}: needs {needed} windows of {seqlen} tokens, but {documents.name} gives {len(ids)}; "
            f"give a longer text, or --seqlen {seqlen}."
        )
    if documents.unread:
        notify(f"note: {said_unread(documents.name, documents.unread)}")
    if len(ids) < (cut.max_windows or 0):
        notify(
            f"note: {documents.name} gives only {counted(len(ids), 'window')} of {seqlen} tokens,\n"
            f"      so fewer than --windows {cut.max_windows} are measured"
        )
    first = beginning(tokenizer)
    begun = bool(first) and first[0] == tokenizer.bos_token_id
    each = 0 if once else len(first)
    return CutText(ids, documents.name, text_sha256(documents), protocol, begun and not once, begun, each)
