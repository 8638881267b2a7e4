"""Benchmark of a 10-shot task with 4 choices: the examples are read once for each question, or with each option."""

import random
import time

import numpy as np
import torch

from benchmarks.measure import Row, device, side_by_side
from isoloop.trainer.config import ModelConfig
from isoloop.trainer.data.tokenizer import ByteTokenizer
from isoloop.trainer.model.build import build_model
from isoloop.trainer.quality.suites.prompts import Question, make_questions
from isoloop.trainer.quality.suites.reader import LoopedReader
from isoloop.trainer.quality.suites.scoring import score_questions
from isoloop.trainer.quality.suites.task import Task

SHOTS, CHOICES, QUESTIONS, RECURRENCE = 10, 4, 8, 8
TASK = Task(name="task", kind="multiple_choice", file="task.jsonl", shots=SHOTS, baselines={"own": 25})


def run() -> list[Row]:
    """Measure 8 questions of some 700 tokens at T = 8, read in three ways, each against the cache.

    On a CPU it is the time of one thread.
    """
    on_gpu = device() == "cuda"
    config = ModelConfig(
        width=768 if on_gpu else 128,
        heads=6 if on_gpu else 2,
        prelude_layers=2,
        core_layers=2,
        coda_layers=2,
        context=2048,
        vocabulary=32_768 if on_gpu else 8192,
    )
    model = build_model(config)
    model.initialise(0)
    reader = LoopedReader(model.to(device()))
    questions = make_questions(
        TASK, _rows(), range(QUESTIONS), seed=1234, tokenizer=ByteTokenizer(), context=config.context
    )
    tokens = np.mean([len(option.tokens) for question in questions for option in question.options])
    ways = {
        "a pass for each option, and its logits": lambda _: [_logits(reader, question) for question in questions],
        "a pass for each option": lambda _: [
            score_questions(reader, [Question(options=(option,), gold=0)], [RECURRENCE])
            for question in questions
            for option in question.options
        ],
        "batches without a cache": lambda _: score_questions(reader, questions, [RECURRENCE], share_prefixes=False),
    }
    fast = lambda _: score_questions(reader, questions, [RECURRENCE])
    clock = time.perf_counter if on_gpu else time.thread_time
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if on_gpu else 1)
    size = f"{QUESTIONS} questions of {tokens:.0f} tokens, T = {RECURRENCE}, width {config.width}"
    rows = [
        Row(
            name=f"shared prefixes, against {name}: {size}",
            result=str(side_by_side(slow, fast, pairs=3, clock=clock)),
            wanted=wanted,
        )
        for (name, slow), wanted in zip(ways.items(), ("4x", "", ""), strict=True)
    ]
    torch.set_num_threads(threads)
    return rows


def _rows() -> list[dict[str, object]]:
    """Return rows of letters, as long as the questions of ARC are in tokens of text."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz "
    return [
        {
            "query": "".join(rng.choices(letters, k=rng.randint(30, 80))),
            "choices": ["".join(rng.choices(letters, k=rng.randint(4, 12))) for _ in range(CHOICES)],
            "gold": rng.randrange(CHOICES),
        }
        for _ in range(64)
    ]


@torch.no_grad()
def _logits(reader: LoopedReader, question: Question) -> list[float]:
    """Score a question as the published protocol's code does: the logits of each whole prompt."""
    scores = []
    for option in question.options:
        tokens = torch.from_numpy(option.tokens).to(reader.device)
        h0 = reader.model.initial_state([0], len(tokens) - 1)
        ((_, logits),) = reader.model.logits(tokens[None, :-1], [RECURRENCE], h0)
        losses = torch.nn.functional.cross_entropy(logits[0].float(), tokens[1:], reduction="none")
        scores.append(float(losses[option.start - 1 :].mean()))
    return scores
