"""Shows what a command returns: a result, a check, a plan. Decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reprune.doors.formats import clock, console, counted, nats, percent, size, sparsities, table, wrapped
from reprune.doors.planned import Plan
from reprune.doors.prepare import said_lacking
from reprune.doors.rates import said_of_rate
from reprune.doors.records.run import DOMINANT
from reprune.doors.verify import Check
from reprune.planning.schedule import ranges

_PROBLEMS = 20  # shown per check


def show_result(record: Mapping[str, Any], out: Path) -> None:
    """Show what a finished run has made."""
    output = console()
    last = record["blocks"][-1]
    output.print()
    output.print(f"sparse model   {out}")
    blocks = sum(bool(block["matrices"]) for block in record["blocks"])
    output.print(f"sparsity       {percent(record['sparsity'])} of {blocks} blocks' pruned matrices")
    output.print("last block     error against the dense model (relative to its output's power)")
    for kind, name in (("calibration", "calibration"), ("heldout", "held-out")):
        value, share = last[f"{kind}_error"], last[f"relative_{kind}_error"]
        output.print(f"  {name:<12} {value:.4g} ({percent(share)})")
    for line in (*_distilled(record.get("distillation")), *_guarded(record)):
        output.print(line)
    squared = [window["largest_feature"] or 0.0 for window in record["windows"] if window["loss"] == "squared"]
    if (share := max(squared, default=0.0)) > DOMINANT:
        output.print(f"loss           up to {percent(share)} of the power that it compares is in one feature;")
        output.print("               --set solver.loss=standardized counts all features alike")
    if said := said_of_rate(record["windows"]):
        output.print(f"rate           {said[0]}")
        output.print(f"               {said[1]}")
    memory = record["peak_memory_bytes"]
    device = f", {size(memory['device'])} on the device" if memory["device"] else ""
    output.print(f"time, memory   {clock(record['seconds'])}, peak {size(memory['host'])}{device}")
    if own := record["self_generation"]:
        peak = size(max(own["peak_memory_bytes"].values()))
        output.print(f"generation     {own['texts']} texts beforehand, {clock(own['seconds'])}, peak {peak}")
    output.print(f"recipe, record {out / 'recipe.yaml'}, {out / 'reprune.json'}")


def _distilled(step: Mapping[str, Any] | None) -> Iterator[str]:
    """The effect of fitting the last blocks to the dense model's predictions."""
    if step is None:
        return
    change = step["heldout_divergence"]
    yield f"distilled      blocks {ranges(step['blocks'])}: KL(dense || sparse) of the model's predictions,"
    yield f"               held-out {nats(change['before'])} > {nats(change['after'])} nats per token"
    if step["failures"]:
        yield "               it became NaN or infinite (see notes); the best state is kept"


def _guarded(record: Mapping[str, Any]) -> Iterator[str]:
    """What the guard did, and what `auto` chose."""
    windows = [window for window in record["windows"] if window["guard"] and window["guard"]["on"]]
    if not windows:
        return
    failed = sum(bool(window["guard"]["failures"]) for window in windows)
    early = [
        window["guard"] for window in windows if window["guard"]["stopped_early"] and not window["guard"]["failures"]
    ]
    spared = sum(guard["planned_epochs"] - guard["run_epochs"] for guard in early)
    restored = sum(window["guard"]["restored"] for window in windows)
    yield f"guard          stopped {len(early)} of {len(windows)} windows early: {spared} epochs not run"
    yield f"               put back an earlier, better state in {restored} of {len(windows)}"
    if failed:
        yield f"               ended {failed} of {counted(len(windows), 'fit')} that became NaN or infinite (see notes)"
    if record["recipe"]["reconstruct"] == "auto":
        sizes = Counter(len(window["reconstructed"]) for window in record["windows"])
        larger = "".join(f", {size} in {sizes[size]}" for size in sorted(sizes) if size > 2)
        nothing = counted(sizes[0], "window")
        yield f"auto           fitted nothing in {nothing}, one block in {sizes[1]}, two in {sizes[2]}{larger}"


def show_check(check: Check) -> None:
    """Show one check of a result, and its problems."""
    output = console()
    output.print(f"{'ok' if check.passed else 'FAILED':<7} {check.name:<9} {check.found}")
    for problem in check.problems[:_PROBLEMS]:
        output.print(f"          {problem}", style="red")
    if (more := len(check.problems) - _PROBLEMS) > 0:
        output.print(f"          and {more} more", style="red")


def show_plan(plan: Plan) -> None:
    """Show what a run would do; `plan.refusals` are left to the caller."""
    output = console()

    def say(line: str, style: str | None = None) -> None:
        output.print(wrapped(line, indent=11), style=style)

    recipe, survey = plan.recipe, plan.survey
    share = survey.pruned_weights / plan.weights
    output.print(f"model      {recipe.model}: {plan.weights:,} weights in {size(plan.bytes)} of safetensors")
    if plan.undownloaded_bytes:
        say(f"download   {size(plan.undownloaded_bytes)} first, by prune; the forecast leaves out the time for this")
    pruned = f"{recipe.pruner.name} at {sparsities(recipe.model_dump(exclude={'allocation'}))}"
    output.print(f"prune      {pruned}: {survey.pruned_weights:,} weights ({percent(share)})")
    if recipe.allocation.name != "uniform":
        output.print(f"allocation {recipe.allocation.name}: more sparsity for blocks that bear more")
    schedule, solver = recipe.schedule, recipe.solver
    steps = ["least squares"] if solver.start == "least-squares" else []
    epochs = max(recipe.planned_epochs(len(window.blocks)) for window in plan.schedule)
    steps += [f"{solver.name}, {counted(epochs, 'epoch')}"] if solver.name != "none" else []
    fitted = ", then ".join(steps) or "no solver"
    output.print(f"rung       {recipe.reconstruct}: {recipe.teacher} teacher; {fitted}")
    forced = solver.teacher_forcing > 0 and solver.name != "none"
    traits = ["standardized loss"] * solver.standardizes + [f"teacher forcing {solver.teacher_forcing:g}"] * forced
    if traits:
        output.print(f"training   {', '.join(traits)}")
    if (step := recipe.distill).blocks:
        output.print(
            f"distill    the last {step.blocks} blocks, {counted(step.epochs_beside(solver), 'epoch')} at {step.lr}"
        )
    output.print(
        f"schedule   {counted(len(plan.schedule), 'window')} of size {schedule.size}, stride {schedule.stride}"
    )
    own = recipe.self_generate.samples
    sources = [*recipe.calibration, *([f"the model's own texts={own}"] if own else [])]
    calibration, heldout = plan.samples
    say(f"samples    {calibration} of {recipe.seqlen} tokens from {', '.join(sources)}")
    say(f"held out   {heldout} from {', '.join(recipe.heldout) or 'the same'}")
    if plan.unread:
        say(f"not read   {', '.join(plan.unread)}: prune may yet refuse them")
    if plan.texts:
        say(f"generation {plan.texts} texts, which the model writes first; the forecast leaves out the time for this")
    where = recipe.device if plan.machine is None else plan.machine.name
    output.print(f"device     {where}, products in {plan.products}")
    forecast = plan.forecast
    device = f", {size(forecast.device_bytes)} on the device" if forecast.device_bytes else ""
    say(
        f"forecast   about {clock(forecast.seconds)}; peak memory {size(forecast.memory_bytes)}{device}; "
        f"{size(forecast.disk_bytes)} on disk"
    )
    if plan.crew.count > 1:
        say(
            f"processes  {plan.crew.count}: time and memory are for each of them; each sends about "
            f"{size(forecast.exchanged_bytes)} over {plan.crew.network.name}"
        )
    if plan.machine is not None and forecast.device_bytes > plan.machine.memory_bytes:
        say(
            f"note       this does not fit in the {size(plan.machine.memory_bytes)} of that device; try "
            "solver.compact, a smaller solver.micro_batch_size, in windows of several blocks also "
            "solver.checkpointing, or solver.rank instead of solver.compact",
            style="red",
        )
    groups = table(("blocks", "linear group", "rows x columns"))
    for row in _alike(plan):
        groups.add_row(*row)
    output.print(groups)
    if unknown := [block.index for block in survey.blocks if not block.groups_known]:
        say(
            f"note       blocks {ranges(unknown)} do not run without weights: their linear groups are known only once "
            "they are loaded"
        )
    if lacking := said_lacking(plan.decoder):
        say(f"note       {lacking}")


def _alike(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """The linear groups; blocks that are alike share a row, and so do experts that are alike."""
    rows: dict[tuple[str, str], list[int]] = {}
    tokens = plan.samples[0] * (plan.recipe.seqlen or 0)
    given = plan.recipe.sparsities
    for block in plan.survey.blocks:
        seen: dict[tuple[str, str], None] = {}
        counts: dict[str, int] = {}
        for names in block.groups:
            shapes = ", ".join("{} x {}".format(*block.shapes[name]) for name in names)
            own = {name: given.of(block.index, name) for name in names}
            marks = {name: "" if pattern == given.base else f" ({pattern})" for name, pattern in own.items()}
            share = block.experts.get(names[0])
            said = ", ".join(f"{name if share is None else _numberless(name)}{marks[name]}" for name in names)
            if share is not None:
                counts[said] = counts.get(said, 0) + 1
                shapes += f", about {share * tokens:,.0f} tokens each"
            seen[(said, shapes)] = None
        for name, shapes in seen:
            of_all = f"{counted(counts[name], 'expert')}: " if name in counts else ""
            rows.setdefault((name, of_all + shapes), []).append(block.index)
        for name in (*block.dense, *block.routers, *block.idle):
            idle = "not run as it is" if name in block.read else "never runs"
            why = "router" if name in block.routers else idle if name in block.idle else "stays dense"
            rows.setdefault((f"{name} ({why})", "{} x {}".format(*block.shapes[name])), []).append(block.index)
        for name, shape in block.others.items():
            rows.setdefault((f"{name} (no linear)", " x ".join(map(str, shape))), []).append(block.index)
    for (group, shapes), blocks in rows.items():
        yield ranges(blocks), group, shapes


def _numberless(name: str) -> str:
    return f"{name.rpartition('.')[0]}.*"
