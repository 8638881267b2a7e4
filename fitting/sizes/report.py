"""A joint fit over sizes as text: on one screen, and as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from isoloop.fitting.cost.family import short_count
from isoloop.fitting.isoflop.report import interval_text
from isoloop.fitting.report.estimates import parameters
from isoloop.fitting.report.full import bullets, held_out_text, law_text, misfit_text, mixture_texts, within_width
from isoloop.fitting.report.layout import columns_of, filled, shortened
from isoloop.fitting.selection.distance import distance_table, trust_sentences
from isoloop.fitting.selection.mixture import NAMED_WEIGHT
from isoloop.fitting.sizes.result import FrontierPoint, Growth, LawComparison, SizesFit
from isoloop.fitting.surface.quantity import Quantity

COLUMNS, LINES = 80, 40
_SHORTEST_CAVEATS = 4
"""Lines that the caveats take at least, if there are any."""
_FEWEST_POINTS = 3
"""Best models through budgets that a screen has at least."""
Printable = Callable[[str], str]


def full_report(fit: SizesFit) -> str:
    """Return the whole fit as text: the answer, best models through budgets, laws, rivals and caveats."""
    low, high = fit.fitted.flops
    simulated = "  (simulated)" if fit.simulated else ""
    sizes = ", ".join(f"{size.label} ({short_count(size.params)}, {size.runs} runs)" for size in fit.sizes)
    head = (
        f"Joint fit of {fit.name} over {len(fit.sizes)} sizes{simulated}\n"
        f"  sizes          {sizes}; parameters without embeddings, each counted once\n"
        f"  runs fitted    {fit.finished_runs}\n"
        f"  compute        {low:.3g} to {high:.3g} FLOPs, accounting {fit.accounting}\n"
        f"  tokens         {fit.fitted.tokens[0]:.3g} to {fit.fitted.tokens[1]:.3g}"
    )
    if fit.fitted.mean_recurrence is not None:
        head += "\n  mean loops     {:g} to {:g}".format(*fit.fitted.mean_recurrence)
    parts = [head]
    if fit.reading:
        parts.insert(0, "\n".join(bullets("How the table was read", fit.reading)))
    verdict = fit.verdict()
    parts.append("\n".join([*verdict.sentences, *_answer(fit.point(fit.answer_budget), f"by the {fit.laws.name}")]))
    if fit.frontier:
        parts.append("\n".join(_frontier_lines(fit.frontier, of=len(fit.frontier))))
    if fit.growth is not None:
        parts.append(f"Growth of the best model over the measured budgets\n  {growth_text(fit.growth)}")
    if fit.alone:
        parts.append("\n".join(_alone_lines(fit)))
    parts += [law_text(fit.laws.laws[0]), *mixture_texts(fit.laws)]
    if fit.joint_test_time is not None:
        parts.append(law_text(fit.joint_test_time))
    parts.append(misfit_text(fit.misfits))
    parts += ["\n".join(_comparison_lines(comparison)) for comparison in fit.comparisons]
    if fit.rollouts is not None:
        sentences = bullets("How far the laws after training can be trusted", trust_sentences(fit.rollouts.rows))
        parts.append("\n".join([*sentences, *distance_table(fit.rollouts.rows)]))
    if fit.held_out is not None:
        parts.append(held_out_text(fit.held_out, f"{fit.laws.name} at T = mu", dense=False))
    parts.append("\n".join(bullets("Caveats", fit.caveats)))
    return "\n".join(within_width(line) for line in "\n\n".join(parts).split("\n")) + "\n"


def screen(fit: SizesFit, *, lines: int = LINES, printable: Printable = str) -> str:
    """Return a joint fit in at most `lines` lines of at most 80 columns: answer, estimates, and what to doubt."""
    low, high = fit.fitted.flops
    simulated = " (simulated)" if fit.simulated else ""
    facts = f"{fit.finished_runs} runs of {len(fit.sizes)} sizes, {low:.3g} to {high:.3g} FLOPs"
    name = shortened(printable(fit.name), COLUMNS - columns_of(f"Joint fit of {simulated}"))
    judged, point = fit.verdict(), fit.point(fit.answer_budget)
    head = [f"Joint fit of {name}{simulated}", shortened(f"  {facts}, {fit.accounting} accounting", COLUMNS)]
    # The answer, and what of it is not determined
    for sentence in judged.sentences:
        head += filled(printable(sentence), COLUMNS, rest="  ")[:4]
    details = "Details: what would be chosen" if judged.answer else "Best model"
    head += _answer(point, f"by the {fit.laws.name}", title=details)
    # The law
    law = fit.laws.best
    table = filled(f"{law.form.name} law: {law.form.formula}", COLUMNS, rest="  ")
    for estimate in parameters(law):
        span = interval_text(estimate.interval).strip("()")
        table.append(shortened(f"  {estimate.name:<6}{estimate.value:>11.5g}  {span:<24}{estimate.words}", COLUMNS))
    table += filled(f"in effect: {law.form.effective(law.vector)}", COLUMNS, first="  ", rest="    ")
    if len(fit.laws.draws_by_law) > 1:
        if fit.phi is not None:
            by = f"phi by the laws that have one ({fit.phi_weight:.0%} of the weight)"
            table += filled(f"{by}: {fit.phi.text()}", COLUMNS, first="  ", rest="    ")
        counted = zip(fit.laws.laws, fit.laws.weights, strict=True)
        weights = ", ".join(f"{each.form.name} law {weight:.0%}" for each, weight in counted if weight >= NAMED_WEIGHT)
        table += filled(f"weights in predictions: {weights}", COLUMNS, first="  ", rest="    ")
    # The best models through budgets: some of them, where all would leave no room for caveats
    if fit.frontier:
        free = lines - len(head) - len(table) - 4 - _SHORTEST_CAVEATS
        head += _frontier_lines(_spread(fit.frontier, max(free - 2, _FEWEST_POINTS)), of=len(fit.frontier))
    # How far it can be trusted, if that leaves room for caveats, and what to doubt: as many as there is room for
    room, shown = lines - len(head) - len(table) - 4, 0
    trust = [] if fit.rollouts is None else filled(" ".join(trust_sentences(fit.rollouts.rows)), COLUMNS, rest="  ")[:3]
    if room - len(trust) >= _SHORTEST_CAVEATS:
        table, room = [*table, *trust], room - len(trust)
    doubts: list[str] = []
    for caveat in fit.caveats:
        more = filled(printable(caveat), COLUMNS, first="  - ", rest="    ")
        if len(doubts) + len(more) > room:
            doubts += more[:room] if not shown else []
            break
        doubts, shown = [*doubts, *more], shown + 1
    hidden = f" ({len(fit.caveats) - shown} more: --full)" if shown < len(fit.caveats) else ""
    head = [shortened(line, COLUMNS) for line in head]
    parts = [head, table, [f"What to doubt, the most important first{hidden}", *doubts]]
    return "\n\n".join("\n".join(map(printable, part)) for part in parts) + "\n"


def _spread(points: Sequence[FrontierPoint], most: int) -> list[FrontierPoint]:
    """Return at most so many points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def growth_text(growth: Growth) -> str:
    """Return how the best size, recurrence and tokens grow with compute, in one line."""
    named = {"N*": growth.params, "mu*": growth.mean_recurrence, "D*": growth.tokens}
    return ", ".join(f"{symbol} ~ C^{' '.join(_written(each, _exponent))}" for symbol, each in named.items())


def _answer(point: FrontierPoint, method: str, title: str = "Best model") -> list[str]:
    rows = [
        ("size", point.params, short_count, "parameters"),
        ("mean recurrence", point.mean_recurrence, _short, "loops"),
        ("tokens", point.tokens, _short, "tokens"),
        ("loss", point.loss, "{:.4f}".format, "nats per token"),
    ]
    lines = [shortened(f"{title} for {point.budget:.3g} FLOPs, {method}", COLUMNS)]
    for name, each, written, unit in rows:
        value, span = _written(each, written)
        lines.append(f"  {name:<18}{value:<10}{span:<26}{unit}".rstrip())
    return lines


def _frontier_lines(points: Sequence[FrontierPoint], of: int) -> list[str]:
    """Return the table of best models through all of a fit's budgets or some `of` them, with 95% intervals."""
    some = f"{len(points)} of {of} " if len(points) < of else ""
    lines = [
        f"Best models through {some}budgets, with 95% intervals",
        f"  {'FLOPs':>8}  {'size':<23}{'mu':<18}{'loss':<7} best measured size",
    ]
    for point in points:
        size, loops = (
            " ".join(_written(each, form))
            for each, form in ((point.params, short_count), (point.mean_recurrence, _short))
        )
        lines.append(f"  {point.budget:>8.3g}  {size:<23}{loops:<18}{point.loss.value:<7.4f} {_best_size(point)}")
    return lines


def _alone_lines(fit: SizesFit) -> list[str]:
    """Return the table of the sizes' best models by their own runs, beside those of the joint fit."""
    lines = [
        f"Each size by the laws of its own runs, beside the joint fit, at {fit.alone[0].budget:.3g} FLOPs",
        f"  {'size':<10}{'runs':>5}  {'mu alone':<24}{'mu jointly':<24}{'loss alone':<11}jointly",
    ]
    for own in fit.alone:
        joint = fit.at_size(own.label, own.budget)
        loops = [each.mean_recurrence.text(".3g") for each in (own, joint)]
        lines.append(
            f"  {own.label:<10}{own.runs:>5}  {loops[0]:<24}{loops[1]:<24}{own.loss.value:<11.4f}{joint.loss.value:.4f}"
        )
    lines += [f"  {each.name}: {each.reason}" for each in fit.missing_fits if each.name.endswith(" alone")]
    return lines


def _best_size(point: FrontierPoint) -> str:
    best = min(point.sizes, key=lambda size: size.loss.value)
    chance = "" if best.chance is None else f" ({best.chance:.0%})"
    return f"{best.label}, mu {best.mean_recurrence.value:.2g}{chance}"


def _comparison_lines(comparison: LawComparison) -> list[str]:
    by = "the largest budget" if comparison.by == "largest budget" else "each size in turn, from the others"
    lines = [f"Laws compared: mean absolute errors, holding out {by}"]
    lines += [f"  {error.mean_absolute_error:>9.4g}%  {error.method}" for error in comparison.errors]
    return [*lines, *(f"  {name}: {reason}" for name, reason in comparison.missing)]


def _exponent(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _written(each: Quantity, written: Callable[[float], str]) -> tuple[str, str]:
    span = "" if each.interval is None else f"({written(each.interval[0])} to {written(each.interval[1])})"
    return written(each.value), span
