"""What a run's numbers amount to, in words: what reconstruction gained, whether it overfits and where.

The rules are few and stated in the report, so that a reader can check them. Knows nothing of pages and pictures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Literal

from reprune.doors.formats import counted, shared_out
from reprune.doors.rates import unusual_steps
from reprune.doors.records.rows import known
from reprune.doors.records.run import DOMINANT, Change, Run, Window
from reprune.doors.report.rises import RISE, SLIGHT, Rise, rises
from reprune.doors.report.text import listed, number, numbered, share, unbroken

CLOSE, FAR = 1.25, 2.0
"""The last block's held-out over its calibration error: up to `CLOSE` the two are close, above `FAR` far apart."""

Tone = Literal["good", "mixed", "bad", "plain"]

RULES = (
    f"A window overfits if, at the end of its epochs, the held-out error is more than {SLIGHT} above its lowest (the "
    f"start included) while the calibration error is more than {SLIGHT} below what it was there. If the held-out error "
    "rose and the calibration error did not fall, training did harm, which is not overfitting: most often the learning "
    "rate is too high for that window. The held-out error meant here is the standardized one, in which all features "
    "count alike, if it is on record.",
    "Averages over windows are geometric means of the error after over the error before. They count only windows with "
    "epochs.",
    "The run as a whole is judged by the weights that were kept: overfitting that the guard took back does not count. "
    f"It also overfits if, on average, the calibration error fell by more than {SLIGHT} and the held-out error rose by "
    f"more than {SLIGHT}; if the held-out error stayed within {SLIGHT}, it was fitted in vain.",
    f"A held-out error of the last block up to {CLOSE:g} times its calibration error is called close, one above "
    f"{FAR:g} times far apart. Part of that gap comes from the pruner, which looks at the calibration samples too, "
    "unless it is magnitude.",
    "Distillation helps if it lowers the held-out divergence of predictions, and harms if it raises it.",
)
"""How the verdict is made, for the reader."""


@dataclass(frozen=True)
class Verdict:
    """The words on top of a report."""

    tone: Tone
    badge: str
    headline: str
    sentences: tuple[str, ...]
    rules: tuple[str, ...] = RULES


def _mean_ratio(pairs: Iterable[tuple[float, float]]) -> float:
    """The geometric mean of the second number of each pair over the first; 1 if no pair can be compared."""
    ratios = [second / first for first, second in pairs if first > 0]
    there = [ratio for ratio in ratios if known(ratio) and ratio > 0]
    return geometric_mean(there) if there else 1.0


def _mean_change(changes: Sequence[Change]) -> float:
    """The geometric mean of the errors after over those before, less 1; 0 if none can be compared."""
    return _mean_ratio((change.before, change.after) for change in changes) - 1


def run_verdict(run: Run) -> Verdict:
    """The verdict on one run."""
    trained = [window for window in run.windows if window.epochs]
    if not trained:
        return Verdict(*_untrained(run), (_pruned(run), _last_block(run), *_failed(run), *_rated(run.windows)))
    gained = _mean_change([window.relative_heldout_error for window in trained])
    fitted = _mean_change([window.relative_calibration_error for window in trained])
    found = rises(trained)
    kept = [rise for rise in found if rise.kept]
    last = run.blocks[-1]
    tone: Tone
    helps = gained < -RISE
    if any(rise.kind == "overfits" for rise in kept) or (gained > RISE and fitted < -RISE):
        tone, badge = "bad", "Overfits"
    elif not helps and fitted < -RISE:
        tone, badge = "bad", "Fitted in vain"
    elif not helps:
        tone, badge = "bad", "Does not help"
    elif kept:
        tone, badge = "mixed", "Helps, but harms some windows"
    elif any(window.failures for window in run.windows):
        tone, badge = "mixed", "Helps, but fails in some windows"
    elif any(rise.kind == "overfits" for rise in found):
        tone, badge = "mixed", "Overfitting taken back"
    elif any(rise.kind == "unknown" for rise in found):
        tone, badge = "mixed", "Helps, a rise was taken back"
    elif last.relative_heldout_error > FAR * last.relative_calibration_error:
        tone, badge = "mixed", "Helps, with a wide gap"
    else:
        tone, badge = "good", "Helps, no overfitting seen"
    if tone != "bad" and _divergence(run) > RISE:
        tone, badge = "mixed", "Helps, but distillation harms"
    elif tone != "bad" and run.distillation is not None and run.distillation.failures:
        tone, badge = "mixed", "Helps, but distillation failed"
    sentences = (
        _pruned(run),
        _last_block(run),
        *_failed(run),
        *_rising(trained, found),
        *guard_sentences(trained),
        *_ruled(trained),
        *_rated(run.windows),
        *_chosen(run),
        *_distilled(run),
    )
    return Verdict(tone, badge, _headline(gained, fitted), sentences)


def _untrained(run: Run) -> tuple[Tone, str, str]:
    """Tone, badge and headline of a run in whose windows no epoch was run."""
    if headline := next(_distilled(run), None):
        if abs(changed := _divergence(run)) <= RISE:
            return "bad", "Does not help", headline
        return ("bad", "Distillation harms", headline) if changed > 0 else ("good", "Distillation helps", headline)
    if _by_least_squares(run):
        headline = (
            "Weights were fitted by least squares alone: what that gained is not on record, as windows are measured "
            "after it."
        )
        return "plain", "Least squares alone", headline
    if failed := [window for window in run.windows if window.failures]:
        headline = (
            f"Reconstruction failed in {len(failed)} of {counted(len(run.windows), 'window')}, as an error became NaN "
            "or infinite: this is what the pruner alone leaves."
        )
        return "bad", "Reconstruction failed", headline
    return "plain", "No reconstruction", "No reconstruction was run: this is what the pruner alone leaves."


def _by_least_squares(run: Run) -> bool:
    return any(window.least_squares for window in run.windows)


def _divergence(run: Run) -> float:
    """The share by which distillation changed the held-out divergence of predictions; 0 without it."""
    if run.distillation is None or not run.distillation.heldout_divergence.before > 0:
        return 0.0
    return run.distillation.heldout_divergence.after / run.distillation.heldout_divergence.before - 1


def _distilled(run: Run) -> Iterator[str]:
    """What distillation changed."""
    if run.distillation is None:
        return
    changed, divergence = _divergence(run), run.distillation.heldout_divergence
    values = f"from {number(divergence.before)} to {number(divergence.after)} nats per token"
    if abs(changed) <= RISE:
        yield f"Distillation left the held-out divergence of predictions as it was, within {SLIGHT} ({values})."
        return
    did = "raised" if changed > 0 else "lowered"
    yield f"Distillation {did} the held-out divergence of predictions by {share(abs(changed))} ({values})."


def _failed(run: Run) -> Iterator[str]:
    """Fits that became NaN or infinite, and why."""
    if failed := [window for window in run.windows if window.failures]:
        which = numbered("window", [window.index for window in failed])
        first = failed[0].failures[0]
        example = first if len(failed) == 1 else f"in window {failed[0].index}, {first}"
        yield f"In {which}, an error became NaN or infinite, and the best state before was put back: {example}."
    if run.distillation is not None and run.distillation.failures:
        first = run.distillation.failures[0]
        yield f"In distillation, an error became NaN or infinite, and the best state before was put back: {first}."


def guard_sentences(windows: Sequence[Window]) -> Iterator[str]:
    """What the guard did in windows that have epochs, and what it saved."""
    watched = [window.guard for window in windows if window.guard is not None and window.guard.on]
    if not watched:
        yield "The guard was off: each window kept the weights of its last epoch, whatever the held-out error said."
        return
    restored = [guard for guard in watched if guard.restored]
    early = [guard for guard in watched if guard.stopped_early and not guard.failures]
    if not restored and not early and not any(guard.failures for guard in watched):
        yield "The guard had nothing to do: in every window the last epoch had the lowest held-out error."
        return
    did = []
    if restored:
        did.append(f"put an earlier state back in {len(restored)} of {counted(len(watched), 'window')}")
    if early:
        spared = sum(guard.planned_epochs - guard.run_epochs for guard in early)
        planned = sum(guard.planned_epochs for guard in watched)
        saved = f"{spared} of {counted(planned, 'planned epoch')}"
        did.append(f"stopped {counted(len(early), 'window')} early, which saved {saved}")
    if did:
        yield f"The guard {listed(did)}."
    if (avoided := 1 - _mean_ratio((guard.judged.last, guard.judged.kept) for guard in restored)) > 0:
        errors, mean = ("state, the held-out error is", "")
        if len(restored) > 1:
            errors, mean = ("states, the held-out errors are", " on average")
        yield f"With the earlier {errors} {share(avoided)} lower{mean} than after the last epoch."


def _headline(gained: float, fitted: float) -> str:
    by, fell = share(abs(gained)), share(abs(fitted))
    if gained < -RISE:
        fell = f"raised by {fell}" if fitted > 0 else f"by {fell}"
        return f"Reconstruction lowered the windows' held-out error by {by} on average (calibration error: {fell})."
    if abs(gained) <= RISE:
        more = f", though the calibration error fell by {fell}" if fitted < -RISE else ""
        return f"Reconstruction left the windows' held-out error as it was, within {SLIGHT} on average{more}."
    more = (
        f"while the calibration error fell by {fell}" if fitted < -RISE else "and did not help on the calibration text"
    )
    return f"Reconstruction raised the windows' held-out error by {by} on average, {more}."


def _pruned(run: Run) -> str:
    matrices = sum(len(block.matrices) for block in run.blocks)
    where = counted(sum(bool(block.matrices) for block in run.blocks) or len(run.blocks), "block")
    where = f"{counted(matrices, 'matrix', 'matrices')} of {where}" if matrices else where
    return f"{run.pruner or 'The pruner'} set {share(run.sparsity)} of the weights in {where} to zero."


def _last_block(run: Run) -> str:
    last = run.blocks[-1]
    calibration, heldout = last.relative_calibration_error, last.relative_heldout_error
    said = (
        f"At the last block, the output differs from the dense model's by {share(calibration)} of its power on the "
        f"calibration samples and by {share(heldout)} on held-out samples"
    )
    if not calibration > 0:
        return f"{said}."
    ratio = heldout / calibration
    times = unbroken(f"{ratio:.2f} times")
    if ratio < 1 / CLOSE:
        return f"{said}: {times}, as the held-out text is easier for this model."
    if ratio <= CLOSE:
        return f"{said}: {times}, which is close."
    if not (fitted := _fitted(run)) and _is_blind(run):
        return f"{said}: {times}, as the held-out text is harder for this model."
    if ratio <= FAR:
        whose = "what was gained" if fitted else "what the pruner gains by looking at samples"
        return f"{said}: {times}, so part of {whose} holds for the calibration text only."
    more = " more than more epochs" if fitted else ""
    return f"{said}: {times}, which is far apart. More calibration samples, or more varied ones, would help{more}."


def _fitted(run: Run) -> bool:
    """Whether any weights were fitted to samples."""
    return any(window.epochs for window in run.windows) or _by_least_squares(run) or run.distillation is not None


def _is_blind(run: Run) -> bool:
    """Whether the pruned weights were chosen without looking at samples."""
    return run.pruner == "magnitude" and shared_out(run.recipe) is None


def _rising(windows: Sequence[Window], found: Sequence[Rise]) -> Iterator[str]:
    """Whether windows overfit, or were harmed, and what became of them."""
    overfitted = [rise for rise in found if rise.kind == "overfits"]
    harmed = [rise for rise in found if rise.kind == "harmed"]
    unknown = [rise for rise in found if rise.kind == "unknown"]
    if not overfitted and len(unknown) < len(windows):
        yield (
            f"No {'other ' if unknown else ''}window overfits: nowhere did the held-out error end more than {SLIGHT} "
            "above its lowest while the calibration error went on falling."
        )
    elif overfitted:
        which = numbered("window", sorted(rise.window.index for rise in overfitted))
        verb = "overfits" if len(overfitted) == 1 else "overfit"
        worst = overfitted[0]
        said = f"{len(overfitted)} of {counted(len(windows), 'trained window')} {verb}: {which}. "
        where = "There" if len(overfitted) == 1 else f"Worst is window {worst.window.index}, where"
        said += f"{where} the held-out error rose by {_risen(worst)} after {_since(worst)} "
        yield f"{said}while the calibration error fell.{_outcome(overfitted)}"
    if harmed:
        which = numbered("window", sorted(rise.window.index for rise in harmed))
        yield (
            f"In {which}, training raised the held-out error (by up to {_risen(harmed[0])}) and did not lower the "
            f"calibration error: the learning rate is likely too high there.{_outcome(harmed)}"
        )
    if unknown:
        which = numbered("window", sorted(rise.window.index for rise in unknown))
        yield (
            f"In {which}, the held-out error rose (by up to {_risen(unknown[0])}).{_outcome(unknown)} Whether that is "
            "overfitting is not known: an epoch is a single step there, and the calibration error after the last one "
            "was not measured."
        )


def _outcome(found: Sequence[Rise]) -> str:
    """What became of windows whose held-out error rose."""
    kept = sorted(rise.window.index for rise in found if rise.kept)
    if not kept:
        return f" {'An' if len(found) == 1 else 'In each, an'} earlier state was put back."
    if len(kept) == len(found):
        return f" The weights kept are those of the higher error{'' if len(found) == 1 else ', in all of them'}."
    return f" An earlier state was put back, except in {numbered('window', kept)}."


def _risen(rise: Rise) -> str:
    return share(rise.share) if math.isfinite(rise.share) else "any measure"


def _since(rise: Rise) -> str:
    return f"epoch {rise.lowest_epoch}" if rise.lowest_epoch else "the start"


def _ruled(windows: Sequence[Window]) -> Iterator[str]:
    """Whether one feature dominates the squared loss."""
    shares = [window.largest_feature for window in windows if not window.standardized]
    ruled = [found for found in shares if known(found) and found > DOMINANT]
    if ruled:
        yield (
            f"In {len(ruled)} of {counted(len(windows), 'trained window')}, one feature has most of the power that the "
            f"loss compares (up to {share(max(ruled))}): a squared loss sees little else. "
            "With solver.loss: standardized, all features count alike."
        )


def _rated(windows: Sequence[Window]) -> Iterator[str]:
    """Whether the learning rate is far from what suits the size of the weights."""
    begun = [window.epochs[0].relative_lr if window.epochs else window.relative_lr for window in windows]
    if unusual := unusual_steps([window.relative_lr for window in windows], begun):
        rate, steps = unusual
        yield (
            f"The learning rate is {share(rate)} of the kept weights' root mean square: {steps} steps than usual. "
            "With solver.lr: 1%, it scales with the weights."
        )


def _chosen(run: Run) -> Iterator[str]:
    """What `auto` chose, and how often."""
    if run.recipe.get("reconstruct") != "auto":
        return
    sizes = Counter(len(window.reconstructed) for window in run.windows)
    names = {0: "no change", 1: "one block"}
    said = [
        f"{names.get(size, f'{size} blocks together')} in {counted(sizes[size], 'window')}" for size in sorted(sizes)
    ]
    yield f"By held-out error, auto chose {listed(said)}."
