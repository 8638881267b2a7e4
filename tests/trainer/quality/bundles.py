"""Small bundles for tests: rows of random words in the published format, and models whose answers are known."""

import csv
import json
import random

import torch
import yaml

from isoloop.trainer.config import ModelConfig
from isoloop.trainer.model.build import build_model

WORDS = ["loop", "core", "state", "a", "depth", "token", "law", "head", "norm", "an", "µ", "coda"]


def words(rng, least=1, most=4):
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))


def choice_rows(number, *, options=4, seed=0, least=1, most=4):
    rng = random.Random(seed)
    return [
        {
            "query": words(rng, 2, 6),
            "choices": [f"{words(rng, least, most)}{place}" for place in range(options)],
            "gold": rng.randrange(options),
        }
        for _ in range(number)
    ]


def schema_rows(number, *, seed=0):
    rng = random.Random(seed)
    rows = []
    for _ in range(number):
        beginning = words(rng, 1, 3)
        options = [f"{beginning} {words(rng)}{place}" for place in range(2)]
        rows.append({"context_options": options, "continuation": words(rng), "gold": rng.randrange(2)})
    return rows


def exact_rows(number, *, seed=0):
    rng = random.Random(seed)
    return [{"context": f"{words(rng, 2, 6)} ", "continuation": words(rng)} for _ in range(number)]


def write_rows(folder, file, rows):
    path = folder / "eval_data" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tasks(folder, entries, baselines):
    """Write core.yaml and eval_meta_data.csv."""
    (folder / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": entries}))
    with (folder / "eval_meta_data.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("Eval Task", "Task Category", "Random baseline"))
        table.writerows((name, "a category", percent) for name, percent in baselines.items())


def write_catalogue(folder, suite, *, short=(), missing=()):
    """Write rows of all tasks of a published suite, as many as it needs."""
    for number, task in enumerate({task.file: task for task in suite.tasks}.values()):
        if task.file in missing:
            continue
        rows = task.rows - 1 if task.file in short else task.rows
        if task.kind == "multiple_choice":
            content = [{"query": "q", "choices": ["a", "b"], "gold": number % 2}] * rows
        elif task.kind == "schema":
            content = [{"context_options": ["a", "b"], "continuation": "c", "gold": 0}] * rows
        elif task.kind == "language_modeling":
            content = [{"context": "a", "continuation": "b"}] * rows
        else:
            content = [{"page": "a b", "text": "a b"}] * rows
        write_rows(folder, task.file, content)


def small_model(seed=0, **changes):
    """Make a small model whose outputs depend on everything that it reads."""
    settings = {"width": 16, "heads": 2, "context": 256, "vocabulary": 256, **changes}
    model = build_model(ModelConfig(**settings))
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
