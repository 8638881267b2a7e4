"""Tables of others as run tables: columns by usual names and units, and one row per run."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import simulate_table
from isoloop.fitting.tables.mapping import map_table, parse_columns
from isoloop.fitting.tables.reading import read_raw


@pytest.fixture
def mapped(tmp_path):
    """Return a function that maps a table given as the text of a .csv file."""

    def mapped_text(text, given=None):
        path = tmp_path / "runs.csv"
        path.write_text(text)
        return map_table(read_raw(path), parse_columns(given) if given else None)

    return mapped_text


DENSE = {"params": [1e8, 1.403e8], "tokens": [2e9, 1.5e9], "loss": [3.1, 3.2]}


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("params,tokens,loss\n1e8,2e9,3.1\n140.3e6,1.5e9,3.2\n", "Columns: params, tokens, loss (nats per token)."),
        ("Params, Tokens ,LOSS\n1e8,2e9,3.1\n140.3e6,1.5e9,3.2\n", "params from 'Params', tokens from 'Tokens', loss"),
        ("N (M),D,val/loss\n100,2e9,3.1\n140.3,1.5e9,3.2\n", "params from 'N (M)' x 1e6, tokens from 'D', loss"),
        ("n_params,tokens_B,L\n100M,2,3.1\n140.3M,1.5,3.2\n", "tokens from 'tokens_B' x 1e9, loss from 'L' "),
        ("config/nParams,D [billions],eval/loss\n1e8,2,3.1\n140.3e6,1.5,3.2\n", "params from 'config/nParams', tokens"),
        ("n,d,train_loss,val_loss\n1e8,2e9,9,3.1\n140.3e6,1.5e9,9,3.2\n", "loss from 'val_loss' (nats per token)"),
        ("N,D,loss,val_loss\n1e8,2e9,9,3.1\n140.3e6,1.5e9,9,3.2\n", "'val_loss' (nats per token), not 'loss'"),
        ("N,D,train/loss\n1e8,2e9,3.1\n140.3e6,1.5e9,3.2\n", "(a training loss; nats per token)"),
        ("N,D,train_loss,val_loss_c4\n1e8,2e9,9,3.1\n140.3e6,1.5e9,9,3.2\n", "loss from 'val_loss_c4' (nats"),
        ("N,D,ppl\n1e8,2e9,22.197951281441632\n140.3e6,1.5e9,24.532530197109352\n", "the logarithm of the perplexity"),
        (f"N,D,loss (bits)\n1e8,2e9,{3.1 / math.log(2)}\n140.3e6,1.5e9,{3.2 / math.log(2)}\n", "'loss (bits)' x 0.693"),
    ],
)  # fmt: skip
def test_usual_names_and_units(mapped, text, note):
    table = mapped(text)
    for name, values in DENSE.items():
        np.testing.assert_allclose(table.frame[name], values, rtol=1e-15)
    assert note in table.notes[0]


def test_given_columns_go_before_names(mapped):
    table = mapped("N,D_billions,tokens,a=b\n1e8,2,1,3\n", "tokens=D_billions*1e9,loss=a=b/2")
    assert table.frame.to_dict("records") == [{"params": 1e8, "tokens": 2e9, "loss": 1.5}]
    assert table.notes == (
        "Columns: tokens from 'D_billions' x 1e9, not 'tokens', loss from 'a=b' x 0.5 (nats per token), params from "
        "'N'.",
    )


def test_the_scatter_of_a_loss_is_no_loss_and_petaflop_days_are_flops(mapped):
    frame = mapped("N,D,val_loss_c4_std,train_loss,PF-days\n1e8,2e9,0.01,3,2\n").frame
    assert (frame["loss"][0], frame["flops"][0]) == (3.0, 2 * 8.64e19)


def test_objects_in_the_cells_of_a_text_are_read(mapped):
    """As wandb's public interface exports runs."""
    rows = """"{'n_params': 1e8, 'tokens': 2e9, 'lr': nan}","{'val_loss': 3.1}",a\n"""
    rows += """"{""n_params"": {""value"": 2e8, ""desc"": null}, ""tokens"": 3e9}",{'val_loss': 3.2},b\n"""
    frame = mapped(f"config,summary,name\n{rows}").frame
    assert frame[["params", "tokens", "loss"]].to_numpy().tolist() == [[1e8, 2e9, 3.1], [2e8, 3e9, 3.2]]
    assert frame["run_id"].tolist() == ["a", "b"]


def test_a_loss_with_a_comma_is_not_taken_for_thousands(mapped):
    with pytest.raises(ValueError, match=r"write 2\.962 or 2962"):
        mapped('N,D,loss\n1e8,2e9,"2,962"\n')


def test_a_given_name_may_hold_commas(mapped):
    frame = mapped('N,D,"L(N,D)"\n1e8,2e9,1\n', "loss=L(N,D)*3,tokens=D").frame
    assert frame.to_dict("records") == [{"params": 1e8, "tokens": 2e9, "loss": 3.0}]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("N,D,flops_per_gpu,loss\n1e8,2e9,1e17,3\n", "Not used: 'flops_per_gpu'; if one of them is meant, name it"),
        (
            "N,D,text,loss\n1e8,2e9,c4,3\n2e8,2e9,c4,3\n1e8,2e9,pile,3\n2e8,2e9,pile,3\n",
            "=text' --experiment 'c4'",
        ),
        ("name,N,D,loss\na,1e8,1e9,3\na,1e8,2e9,3\nb,2e8,2e9,3\n", "the same 'name' were taken for runs of their own"),
        (
            "params/arch,N,D,loss\na,1e8,1e9,3\nb,1e8,2e9,3\na,2e8,2e9,3\nb,1e8,3e9,3\n",
            "Runs that differ in 'params/arch'",
        ),
        (
            "run_id,run_name,N,D,loss\n1,a,1e8,1e9,3\n2,a,1e8,2e9,3\n3,b,2e8,2e9,3\n4,b,2e8,3e9,3\n",
            "Rows with the same 'run_name'",
        ),
        ("N,D,step,loss\n1e8,1e9,1,3\n1e8,2e9,2,3\n2e8,1e9,1,3\n", "if rows are steps ('step') of runs"),
    ],
)
def test_what_could_have_been_meant_otherwise_is_said(mapped, text, note):
    assert note in mapped(text).notes[-1]


def test_a_name_that_stands_for_several_seeds_gets_the_seed(mapped):
    table = mapped("run,seed,N,D,loss\na,1,1e8,1e9,3\na,2,1e8,1e9,3.1\n")
    assert table.frame["run_id"].tolist() == ["a seed 1", "a seed 2"]
    assert table.notes[-1].startswith("Runs: the seed was added to run_id")


def test_our_name_stands_for_the_column_found_for_it(mapped):
    """So that advice as `--columns tokens=tokens*1e9` works on every table."""
    table = mapped("N,D,L\n1e8,2,20\n", "tokens=tokens*1e9,perplexity=loss").frame
    assert table.to_dict("records") == [{"params": 1e8, "tokens": 2e9, "loss": math.log(20)}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokens", "must be given as tokens=NAME"),
        ("tokns=D", "got 'tokns'; did you mean 'tokens'"),
        ("tokens=D,tokens=E", "'tokens' is given twice"),
        ("tokens=D*0", "must be a positive and finite number"),
    ],
)
def test_columns_given_wrongly(text, message):
    with pytest.raises(ValueError, match=message):
        parse_columns(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("N,D,loss\n1,2,about 3\n", "`loss` must be a number, but row 1 has 'about 3'"),
        ("N,D,L\n1,2,3\n1,2,x\n", "`loss` must be a number, but row 2 of 'L' has 'x'"),
        ("N,D,val/a/loss,val/b/loss\n1,2,3,4\n", "'val/a/loss' and 'val/b/loss' could, and differ; say which"),
        ("N,D,val_bpb\n1,2,.9\n", "only in bits per byte .*'loss=val_bpb.2.9' for 4.2 bytes per token"),
        ("a,b\n1,2\n", "has 'a', 'b' and lacks mean_recurrence .*, tokens .*, loss .*--columns loss=NAME"),
        ("recurrence,loss\n1,7.4\n2,6.4\n", "has 'recurrence', 'loss' and lacks mean_recurrence .*, tokens .*, flops"),
        ("T,tokens,flops,loss\n1,1e9,1e18,3\n2,1e9,1e18,3\n", "lacks mean_recurrence"),
        ("T,N,tokens,loss\n1,1e8,1e9,3\n2,1e8,1e9,3\n", r"lacks mean_recurrence .*, flops .*; add"),
        ("T,mu,tokens,flops,loss\n1,1,1e9,1e18,3\n,1,1e9,1e18,3\n", ".`recurrence`., but row 2 has none; fill it in"),
        ("N,D,loss,seed\n1,2,3,4\n1,2,3,99999999999999999999\n", "at most 2^63 - 1 .* but row 2 has 99999999999"),
        ("N,D,loss,seed\n1,2,3,0.5\n", "`seed` must be a whole number, but row 1 has '0.5'"),
        ("N,D,loss,simulated\n1,2,3,maybe\n", "`simulated` must be True or False, but row 1 has 'maybe'"),
        ("N,D,loss,step\n1,2,3,1\n1,2,3,x\n", "a step must be a number, but row 2 has 'x' in 'step'"),
        ("N,D,loss,status\n1,2,3,running\n", "all are still running"),
    ],
)  # fmt: skip
def test_what_can_not_be_told_is_refused(mapped, text, message):
    with pytest.raises(ValueError, match=message.replace("^", r"\^")):
        mapped(text)


def test_a_row_per_run_and_recurrence_becomes_a_row_per_run(mapped):
    rows = ["mu,tokens,C,T,loss", "2,1e9,1e18,1,3.3", "2,1e9,1e18,2,3.2", "2,1e9,1e18,4,3.19", "4,8e8,1e18,4,3.15"]
    rows += ["8,6e8,1e18,4,3.3"]
    table = mapped("\n".join(rows))
    assert table.frame["loss"].tolist() == [3.2, 3.15]
    assert table.frame["loss_T4"].tolist() == [3.19, 3.15]
    assert np.isnan(table.frame["loss_T1"][1])
    assert table.notes[1:] == (
        "Rows: 5, one for each T of 3 runs; a run's loss is that at T = mean recurrence.",
        "Left out: 1 run without a loss at T = mean recurrence.",
    )
    with pytest.raises(ValueError, match="row 6 repeats T = 4 of a run"):
        mapped("\n".join([*rows, "8,6e8,1e18,4,3.2"]))


def test_the_loss_comes_from_the_losses_at_each_recurrence(mapped):
    table = mapped("mu,tokens,C,val_loss_T=1,loss@2\n1,1e9,1e18,3.3,3.4\n2,1e9,1e18,3.3,3.2\n")
    assert table.frame[["loss", "loss_T1", "loss_T2"]].to_numpy().tolist() == [[3.3, 3.3, 3.4], [3.2, 3.3, 3.2]]


def test_a_history_becomes_a_row_per_run(mapped):
    rows = ["run,_step,mu,tokens,C,val_loss", "a,1,2,1e8,1e17,4", "a,3,2,2e8,3e17,", "a,2,2,2e8,2e17,3.5"]
    table = mapped("\n".join([*rows, "b,1,2,1e8,1e17,4", "b,2,2,2e8,2e17,NaN"]))
    assert table.frame["loss"].tolist()[0] == 3.5
    assert np.isnan(table.frame["loss"][1])  # the run diverged after its first loss
    assert table.frame["flops"].tolist() == [3e17, 2e17]
    assert table.notes[1] == "History: the last loss of each of 2 runs kept, of 5 rows."


def test_statuses_of_trackers(mapped):
    rows = ["Name,State,N,D,loss", "a,finished,1,2,3", "b,crashed,1,2,4", "c,RUNNING,1,2,3", "d,Killed,1,2,"]
    table = mapped("\n".join(rows))
    assert table.frame["run_id"].tolist() == ["a", "b", "d"]
    assert table.frame["status"].tolist() == ["finished", "failed", "failed"]
    assert table.frame["loss"].notna().tolist() == [True, False, False]
    assert table.notes[1:] == (
        "Status: crashed taken for failed, killed taken for failed.",
        "Left out: the losses of 1 run that failed or diverged.",
        "Left out: 1 run still running.",
    )


def test_seeds_and_text_stay_exact(mapped):
    table = mapped("run_id,N,D,loss,seed\n007,1,2,3,9007199254740993\nNA,1,2,3,9223372036854775807\n")
    assert table.frame["seed"].tolist() == [2**53 + 1, 2**63 - 1]
    assert table.frame["run_id"].tolist() == ["007", "NA"]


def test_a_repeated_name_of_a_model_is_no_run_id(mapped):
    assert "run_id" not in mapped("model,N,D,loss\ngpt,1,2,3\ngpt,1,3,3\n").frame


def test_our_own_table_comes_through_unchanged(tmp_path):
    own = simulate_table(budgets=(1e18, 4e18), mean_recurrences=(1, 2), recurrences=(1, 2)).assign(steps=3, group="a")
    own.to_csv(tmp_path / "runs.csv", index=False)
    table = map_table(read_raw(tmp_path / "runs.csv"))
    pd.testing.assert_frame_equal(table.frame, own, check_exact=True, check_dtype=False)
    assert table.notes == ()


def test_stored_sweeps_come_through_unchanged():
    """The same bits as pandas' exact reader gives."""
    for path in sorted((Path(__file__).parents[3] / "results" / "python").glob("*/runs.csv")):
        table = map_table(read_raw(path))
        plain = pd.read_csv(path, engine="python", dtype={"run_id": str})
        pd.testing.assert_frame_equal(table.frame, plain, check_exact=True, check_dtype=False)
        assert table.notes == (), re.sub(".*/", "", str(path))
