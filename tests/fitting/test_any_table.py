"""Any table in: an answer with the warning that the table deserves or a reason to refuse it, never anything else.

`ISOLOOP_EXAMPLES=500` draws so many random tables afresh, instead of the few that are always the same, and changes
every table in every way.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoloop.fitting import (
    PUBLISHED_TRUTH,
    ChinchillaLaw,
    SweepFit,
    choose_table,
    fit_sweep,
    predict,
    read_runs,
    simulate_table,
)

EXAMPLES = int(os.environ.get("ISOLOOP_EXAMPLES", "0"))
STEADY = settings(
    max_examples=EXAMPLES or 8,
    deadline=None,
    derandomize=not EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    database=None,
)
NOISY = dataclasses.replace(PUBLISHED_TRUTH, run_noise=5e-4)
CHINCHILLA = np.array([1.8, 480.0, 2085.0, 0.35, 0.37])
LOOPED = simulate_table(
    NOISY, budgets=(1e18, 2e18, 4e18), mean_recurrences=(2, 4, 6, 8, 12), recurrences=(1, 4, 8, 16), seed=1
)
# Losses at other T where row 3 has them, and in no other budget: each model with them is a fit of its own.
LOOPED.loc[LOOPED["budget"] > 1e18, [name for name in LOOPED if "loss_T" in name]] = np.nan
OWN = ["mean_recurrence", "tokens", "flops", "loss"]


def dense(**changes):
    budget = np.repeat([1e19, 3e19, 1e20, 3e20], 6)
    params = np.sqrt(budget / 6 / 20) * np.tile(np.geomspace(0.25, 4, 6), 4)
    data = {"params": params, "tokens": budget / (6 * params)}
    loss = ChinchillaLaw().loss(CHINCHILLA, data) * np.exp(np.random.default_rng(0).normal(0, 1e-3, len(params)))
    return pd.DataFrame({**data, "loss": loss, **changes})


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "looped, cost model": lambda: LOOPED.assign(simulated=False),
    "looped, own FLOPs": lambda: LOOPED[OWN].copy(),
    "looped, own FLOPs, T": lambda: LOOPED[[*OWN, "budget", *(name for name in LOOPED if "loss_T" in name)]].copy(),
    "dense": dense,
    "dense, FLOPs and budgets": lambda: dense().assign(
        flops=lambda table: 6.6 * table["params"] * table["tokens"],
        budget=np.repeat([1.1e19, 3.3e19, 1.1e20, 3.3e20], 6),
    ),
}

# A message names the rule, the value it got and what to do.
MESSAGE = re.compile(r"(must|need|takes|come together|can't|no law could be fitted|allows none).+[;:].+", re.DOTALL)
JARGON = re.compile(r"Traceback|np\.|numpy|dtype|NoneType|tuple|KeyError|Series|DataFrame|object at 0x|nan nats")


def by_fit(table):
    fit = fit_sweep(table, name="x", draws=0)
    assert SweepFit.from_json(fit.to_json()) == fit
    assert fit.report()
    missing = [f"{one.name}: {one.reason}" for one in fit.missing_fits]
    if fit.training is not None:
        try:
            prediction = predict(fit, flops=fit.fitted.flops[1])
            assert prediction.loss > 0
            assert np.isfinite(prediction.loss)
        except ValueError as error:
            checked(error)
    return "\n".join([*fit.reading, *fit.caveats, *missing])


def by_choice(table):
    # The six-parameter law takes most of the time; looped tables with their own FLOPs are compared with all laws.
    looped_laws = ["training"] if "effective_params_per_loop" in table else []
    laws = ["chinchilla"] if "mean_recurrence" not in table and "params" in table else looped_laws
    choice = choose_table(table, laws=laws, draws=0, by=["row"])
    return "\n".join([*choice.reading, *choice.caveats, *(f"{law}: {reason}" for law, reason in choice.missing)])


WAYS = {"fit": by_fit, "choose": by_choice}


def checked(error):
    text = str(error)
    assert MESSAGE.search(text), text
    assert not JARGON.search(text), text
    return "Refused: " + text


def answer(way, table):
    """Return what `way` says about a table: caveats, notes and reasons, or `Refused:` and why."""
    try:
        text = WAYS[way](table)
    except ValueError as error:
        return checked(error)
    assert not JARGON.search(text), text
    return text


# What is done to a table, and what the answer must then say


@dataclass(frozen=True)
class Mutation:
    """A change of a table that deserves to be told of in words that match `deserves`."""

    change: Callable[[pd.DataFrame], pd.DataFrame]
    deserves: str
    tables: tuple[str, ...] = tuple(TABLES)
    ways: tuple[str, ...] = tuple(WAYS)


def scaled(column, factor):
    return lambda table: table.assign(**{column: table[column] * factor})


def half_scaled(column, factor):
    return lambda table: table.assign(**{column: table[column] * np.where(np.arange(len(table)) % 2, factor, 1.0)})


def with_value(column, value, row=3):
    def change(table):
        changed = table.astype({column: object}) if isinstance(value, str) else table.copy()
        changed.loc[row, column] = value
        return changed

    return change


def multiplied(column, factor, row=3):
    return lambda table: table.assign(**{column: table[column] * np.where(np.arange(len(table)) == row, factor, 1.0)})


def exchanged(one, other):
    return lambda table: table.rename(columns={one: other, other: one})


def repeated(table):
    return pd.concat([table, table.head(len(table) // 2)], ignore_index=True)


def shifted(table):
    """Every value moves one column to the right, as where rows have a field more than the header."""
    return pd.DataFrame(np.roll(table.to_numpy(dtype=object), 1, axis=1), columns=table.columns).infer_objects()


def without(column):
    return lambda table: table.drop(columns=column)


DENSE = tuple(name for name in TABLES if name.startswith("dense"))
OWN_LOOPED = tuple(name for name in TABLES if "own" in name)
ALL_LOOPED = tuple(name for name in TABLES if name not in DENSE)
WITH_T = ("looped, cost model", "looped, own FLOPs, T")
PLAIN = tuple(name for name in TABLES if name != "looped, cost model")
OWN_COUNT = (*OWN_LOOPED, "dense, FLOPs and budgets")
MUTATIONS = {
    "tokens in billions": Mutation(scaled("tokens", 1e-9), r"tokens=tokens\*1e9", PLAIN),
    "params in millions": Mutation(scaled("params", 1e-6), r"params=params\*1e6", DENSE),
    "FLOPs in 1e18": Mutation(scaled("flops", 1e-18), r"flops=flops\*1e18", OWN_COUNT),
    "half of the tokens in billions": Mutation(half_scaled("tokens", 1e-9), "units mixed", PLAIN),
    "perplexity": Mutation(lambda table: table.assign(loss=np.exp(table["loss"])), "perplexity"),
    "bits per byte": Mutation(scaled("loss", 1 / (np.log(2) * 4.5)), "bits per byte"),
    "tokens beside a cost model in billions": Mutation(
        scaled("tokens", 1e-9), "Refused: `flops` must equal tokens x", ("looped, cost model",)
    ),
    "params and tokens swapped": Mutation(exchanged("params", "tokens"), "swapped", DENSE),
    "tokens and FLOPs swapped": Mutation(exchanged("flops", "tokens"), "FLOPs per token|swapped|Refused", OWN_COUNT),
    "tokens and loss swapped": Mutation(exchanged("loss", "tokens"), "Refused|tokens.*far below", PLAIN),
    "loops and tokens swapped": Mutation(
        exchanged("mean_recurrence", "tokens"), "Refused|tokens.*far below", OWN_LOOPED
    ),
    "half of the rows twice": Mutation(repeated, r"rows repeat|Refused: `run_id` must be unique"),
    "columns shifted": Mutation(shifted, "Refused|far below|units mixed|swapped|repeat|diverged|Left out"),
    "one loss 1e308": Mutation(with_value("loss", 1e308), "diverged|Left out, since they did not finish"),
    "one loss infinite": Mutation(with_value("loss", np.inf), "diverged|Left out, since they did not finish"),
    "one loss missing": Mutation(with_value("loss", np.nan), "diverged|Left out, since they did not finish|Refused"),
    "one loss three times as large": Mutation(multiplied("loss", 3.0), r"[Ll]eft out.*lower quartile"),
    "one loss 1e30": Mutation(with_value("loss", 1e30), r"[Ll]eft out.*lower quartile"),
    "one loss off by 10%": Mutation(multiplied("loss", 1.1), "Run .* lies .* off the"),
    "one loss negative": Mutation(with_value("loss", -3.0), "Refused: `loss` must be finite and greater than 0"),
    "one loss zero": Mutation(with_value("loss", 0.0), "Refused: `loss` must be finite and greater than 0"),
    "text in a number": Mutation(with_value("loss", "n/a"), "Refused: `loss` must be a number, but r.*'n/a'"),
    "text in tokens": Mutation(with_value("tokens", "4B"), "Refused: `tokens` must be a number, but r.*'4B'"),
    "tokens missing in a row": Mutation(with_value("tokens", np.nan), "Refused: `tokens` must be"),
    "tokens infinite in a row": Mutation(with_value("tokens", 1e308), "Refused: `tokens` must be from 1e-20 to"),
    "loss absent": Mutation(without("loss"), r"Refused: .*lacks loss"),
    "tokens absent": Mutation(without("tokens"), r"Refused: .*lacks tokens"),
    "FLOPs absent": Mutation(without("flops"), r"Refused: .*lacks flops", ("looped, own FLOPs",)),
    "FLOPs absent beside budgets": Mutation(
        without("flops"), "taken to have spent its budget", ("looped, own FLOPs, T", "dense, FLOPs and budgets")
    ),
    "one row": Mutation(lambda table: table.head(1), "Refused|Only 1 run|1 run is fitted"),
    "three rows": Mutation(lambda table: table.head(3), "Refused|Only 3 runs"),
    "one budget": Mutation(lambda table: table.head(5), "All runs spend one budget|Refused: no law could be fitted"),
    "one token count": Mutation(lambda table: table.assign(tokens=1e9), "needs `tokens` to vary|Refused", PLAIN),
    "one loss throughout": Mutation(lambda table: table.assign(loss=3.0), "needs `loss` to vary|Refused"),
    "no run finished": Mutation(lambda table: table.assign(loss=np.nan), "Refused"),
    "loss explodes at one T": Mutation(multiplied("loss_T8", 20.0), "T = 8", WITH_T, ("fit",)),
    "infinite at one T": Mutation(with_value("loss_T8", np.inf), "T = 8 is infinite", WITH_T, ("fit",)),
    "loss rises with T": Mutation(scaled("loss_T16", 1.1), "rise", WITH_T, ("fit",)),
    "two experiments": Mutation(
        lambda table: table.assign(experiment=np.arange(len(table)) % 2), "Refused: `experiment` must be one value"
    ),
    "loss in bits said": Mutation(
        lambda table: table.assign(loss_unit="bits per byte"), "Refused: `loss_unit` must be"
    ),
    "a seed beyond 2^63": Mutation(lambda table: table.assign(seed=2.0**70), "Refused: `seed` must be at most"),
}
# Tables and ways take turns, to save time.
CASES = [
    (what, table, way)
    for place, (what, mutation) in enumerate(MUTATIONS.items())
    for table in (mutation.tables if EXAMPLES else np.roll(mutation.tables, place)[:1])
    for way in (WAYS if EXAMPLES or place % 18 == 0 else ("fit",))
    if way in mutation.ways
]


@functools.cache
def answer_before(table, way):
    return answer(way, TABLES[table]())


@pytest.mark.parametrize(("what", "table", "way"), CASES)
def test_a_mutation_gets_the_warning_that_it_deserves(what, table, way):
    mutation = MUTATIONS[what]
    answered = answer(way, mutation.change(TABLES[table]()))
    assert re.search(mutation.deserves, answered), answered
    assert not re.search(mutation.deserves, answer_before(table, way)), "is said of the unchanged table, too"


# Random changes, several at once: an answer or a reason, whatever they are


def columns_of(table):
    return st.sampled_from(list(table.columns))


@st.composite
def mutated_tables(draw):
    """Return a table after one to three random changes."""
    table = TABLES[draw(st.sampled_from(list(TABLES)))]()
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(list(CHANGES)))
        table = CHANGES[kind](draw, table)
        if table.empty:
            break
    return table


def drop_rows(draw, table):
    return table.head(draw(st.integers(0, len(table))))


def drop_column(draw, table):
    return table.drop(columns=draw(columns_of(table))) if len(table.columns) > 1 else table


def repeat_rows(draw, table):
    rows = draw(st.lists(st.integers(0, len(table) - 1), max_size=8))
    return pd.concat([table, table.iloc[rows]], ignore_index=draw(st.booleans()))


def repeat_column(draw, table):
    return pd.concat([table, table[[draw(columns_of(table))]]], axis=1)


def swap_columns(draw, table):
    one, other = draw(columns_of(table)), draw(columns_of(table))
    return table.rename(columns={one: other, other: one})


def shift_columns(draw, table):
    return pd.DataFrame(
        np.roll(table.to_numpy(dtype=object), draw(st.integers(-2, 2)), axis=1), columns=table.columns
    ).infer_objects()


def shift_one_column(draw, table):
    name, by = draw(columns_of(table)), draw(st.integers(1, 5))
    return table.assign(**{name: np.roll(table[name].to_numpy(), by)}) if table.columns.is_unique else table


def rescale_column(draw, table):
    name = draw(st.sampled_from([name for name in NUMBERS if name in table] or ["x"]))
    factor = 10.0 ** draw(st.integers(-30, 30))
    rows = np.arange(len(table)) % draw(st.integers(1, 3)) == 0
    values = table.get(name, 1.0)
    if not table.columns.is_unique or (isinstance(values, pd.Series) and values.dtype == object):
        return table
    return table.assign(**{name: values * np.where(rows, factor, 1.0)})


def insert_value(draw, table):
    name, row = draw(columns_of(table)), draw(st.integers(0, len(table) - 1))
    value = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e308, -1e308, 1e-320, 0.0, -1.0, "text", "", True, None]))
    values = table[name].astype(object).to_numpy(copy=True)
    values[row] = value
    changed = table.assign(**{name: values})
    return changed.infer_objects() if draw(st.booleans()) else changed


def fill_column(draw, table):
    return table.assign(**{draw(columns_of(table)): draw(st.sampled_from([np.nan, 1.0, 3.0, 1e18, "same", True]))})


def order_rows(draw, table):
    return table.sample(frac=1.0, random_state=draw(st.integers(0, 9)))


NUMBERS = [*OWN, "params", "budget", "loss_T8", "flops_per_token_fixed", "effective_params_per_loop"]
CHANGES = {
    change.__name__: change
    for change in (
        drop_rows,
        drop_column,
        repeat_rows,
        repeat_column,
        swap_columns,
        shift_columns,
        shift_one_column,
        rescale_column,
        insert_value,
        fill_column,
        order_rows,
    )
}


@STEADY
@given(table=mutated_tables(), way=st.sampled_from(["fit", "fit", "choose"]))
def test_whatever_is_done_to_a_table_gives_an_answer_or_a_reason(table, way):
    kept = table.copy()
    answer(way, table)
    pd.testing.assert_frame_equal(table, kept)  # the caller's table is left alone


@STEADY
@given(table=mutated_tables())
def test_whatever_a_file_holds_gives_an_answer_or_a_reason(tmp_path, table):
    path = tmp_path / "runs.csv"
    table.to_csv(path, index=False)
    try:
        runs = read_runs(path)
    except ValueError as error:
        checked(error)
    else:
        answer("fit", runs.frame)


@pytest.mark.parametrize("table", ["looped, cost model", "looped, own FLOPs", "dense"])
def test_the_order_of_the_rows_changes_no_answer(table):
    rows = TABLES[table]()
    fit, shuffled = (fit_sweep(each, name="x", draws=0) for each in (rows, rows.sample(frac=1.0, random_state=1)))
    assert shuffled.isoflop.axis_law.exponent == pytest.approx(fit.isoflop.axis_law.exponent, rel=1e-6)
    assert shuffled.training.objective == pytest.approx(fit.training.objective, rel=1e-6)
    assert len(shuffled.caveats) == len(fit.caveats)


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_few_rows_is_refused_or_called_one(table, rows):
    assert re.search(r"Refused|Only \d+ runs? (is|are) fitted", answer("fit", TABLES[table]().head(rows)))


def test_very_many_rows_are_fitted():
    many = pd.concat([dense()] * 840, ignore_index=True)
    assert len(many) > 2e4
    many["loss"] *= np.exp(np.random.default_rng(0).normal(0, 1e-3, len(many)))
    fit = fit_sweep(many, name="x", draws=0)
    assert fit.finished_runs == len(many)
    assert fit.training.vector == pytest.approx(fit_sweep(dense(), name="x", draws=0).training.vector, rel=0.1)
