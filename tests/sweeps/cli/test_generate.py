"""The command `isoloop generate`."""

import signal
import subprocess

import pandas as pd
import pytest

from isoloop.sweeps.paths import Folders
from isoloop.trainer.loop import train
from isoloop.trainer.quality import load_trained
from isoloop.trainer.quality.generation import GenerationConfig, generate
from tests.commands import ISOLOOP, isoloop

CONFIG = GenerationConfig(max_tokens=30, seed=5)
OPTIONS = ("--max-tokens", "30", "--seed", "5")


@pytest.fixture(scope="module")
def out(spec, corpus, tmp_path_factory):
    """An output folder with a sweep of two runs, of which the second one trained longer."""
    folders = Folders(out=tmp_path_factory.mktemp("out"), name="tiny")
    specs = [spec, spec.model_copy(update={"steps": 4 * spec.steps})]
    results = [train(each, corpus, folders.run(each.run_id)) for each in specs]
    assert results[1].loss < results[0].loss
    folders.sweep.mkdir(parents=True)
    pd.DataFrame({"run_id": [each.run_id for each in specs]}).to_csv(folders.table, index=False)
    return folders.out


def test_a_sweep_means_its_best_run_and_text_goes_to_stdout(out, spec):
    best = spec.model_copy(update={"steps": 4 * spec.steps}).run_id
    (expected,) = generate(load_trained(out / "runs" / best), "the ", CONFIG)
    for target in ("tiny", best, out / "runs" / best):
        done = isoloop("generate", target, "--prompt", "the ", *OPTIONS, "--out", out, cwd=out)
        assert done.stdout == f"the {expected.text}\n"
        assert "30 tokens at T = " in done.stderr
        assert (f"the best run of 'tiny', {best}: validation loss" in done.stderr) == (target == "tiny")


def test_several_prompts_and_samples(out, spec):
    trained = load_trained(out / "runs" / spec.run_id)
    (out / "prompt.txt").write_text("one\ntwo")
    prompts = ("-p", "a", "--prompt-file", "prompt.txt", "--samples", "2")
    done = isoloop("generate", spec.run_id, *prompts, *OPTIONS, "--out", out, cwd=out)
    texts = generate(trained, ["a", "one\ntwo"], CONFIG.model_copy(update={"samples": 2}))
    assert done.stdout == "".join(f"{text.prompt}{text.text}\n--------\n" for text in texts)
    assert "120 tokens" in done.stderr


def test_a_prompt_of_a_file_keeps_its_line_ends(out, spec):
    (out / "windows.txt").write_bytes(b"one\r\ntwo\r")
    done = isoloop(
        "generate", spec.run_id, "--prompt-file", "windows.txt", "-p", "a", "--max-tokens", "1", "--out", out, cwd=out
    )  # fmt: skip
    assert "one\r\ntwo\r" in done.stdout


def test_saved_loops_are_those_of_all_tokens_read(out, spec):
    done = isoloop(
        "generate", spec.run_id, "-p", "the ", *OPTIONS, "--exit-tolerance", "0.2", "--recurrence", "4", "--out", out,
        cwd=out,
    )  # fmt: skip
    config = CONFIG.model_copy(update={"exit_tolerance": 0.2, "recurrence": 4})
    (text,) = generate(load_trained(out / "runs" / spec.run_id), "the ", config)
    assert text.saved_loops > 0
    assert f", {text.saved_loops:.0%} of the loops of all tokens read saved" in done.stderr


def test_notes_come_before_the_text(out, spec):
    done = isoloop("generate", spec.run_id, "-p", "x" * 200, "--recurrence", "99", *OPTIONS, "--out", out, cwd=out)
    context = spec.model.context
    assert f"prompt 1 has 201 tokens, more than the context of {context}; its first {201 - context}" in done.stderr
    assert "note: T = 99 is outside what was measured" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "a model must be the folder of a run or of a checkpoint, a run's id, a sweep that was run"),
        (["."], "a model must be a run's folder"),
        (["tiny", "--prompt-file", "absent.txt"], "--prompt-file must be a text file in UTF-8"),
        (["tiny", "--device", "warp"], "--device) must be one that torch can use here, but got 'warp'"),
        (["tiny", "--device", "meta"], "--device) must be one that torch can use here, but got 'meta'"),
        (["tiny", "--top-p", "2"], "isoloop: --top-p: input should be less than or equal to 1, but got 2.0"),
        (["tiny", "--top-p", "0"], "isoloop: --top-p: input should be greater than 0, but got 0.0"),
        (["tiny", "--exit-tolerance", "0"], "isoloop: --exit-tolerance: input should be greater than 0, but got 0.0"),
        (["tiny", "--temperature", "inf"], "isoloop: --temperature: input should be a finite number, but got inf"),
        (["tiny", "--recurrence", "5000"], "isoloop: --recurrence: input should be less than or equal to 4096"),
        (["tiny", "--temperature", "0", "--top-k", "5"], "isoloop: a temperature of 0 always takes the most probable"),
        (["tiny", "--cache", "none", "--exit-tolerance", "1"], "isoloop: early exit needs a cache"),
        (["tiny", "--continue-text"], "(leave out --continue-text)"),
        (["tiny", "--revision", "main"], "a revision (--revision) is of a model on Hugging Face"),
        (["tiny", "--recurrence", "0"], "'--recurrence': Input should be greater than or equal to 1"),
        (["tiny", "--best"], "the best weights of a run are those that evaluation.keep_best keeps"),
    ],
)
def test_bad_input_is_one_clear_error(out, arguments, message):
    done = isoloop("generate", *arguments, "--out", out, cwd=out, check=2)
    assert message in done.stderr
    assert done.stdout == ""


def test_ctrl_c_in_the_middle_keeps_what_is_written(out, spec):
    command = [*ISOLOOP, "generate", spec.run_id, "-p", "abc", "--max-tokens", "1000000", "--ignore-end"]
    command += ["--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=out) as process:
        begun = process.stdout.read(50)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert begun.startswith("abc")
    assert rest.endswith("\n")
    assert "Traceback" not in errors
    assert "stopped after " in errors
