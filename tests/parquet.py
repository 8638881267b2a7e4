"""Text as parquet files, for the tests of several rooms."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "über", "naïve", "世界", "loops", "of", "12", "runs."]


def document(number: int) -> str:
    """Text of some hundred characters, another for each number."""
    draw = random.Random(number)
    made_up = ["".join(draw.choice(["ka", "lo", "mi", "tu", "ren"]) for _ in range(3)) for _ in range(20)]
    return " ".join([*made_up, *draw.choices(WORDS, k=30)])


def write_parquet(path: Path, texts: list, *, column: str = "text", kind: pa.DataType | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = pa.array(texts, type=kind)
    pq.write_table(pa.table({"id": range(len(texts)), column: texts}), path, row_group_size=20)
    return path
