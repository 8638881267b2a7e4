"""What a command need not wait for is imported late. Who may import whom: the contracts in pyproject.toml."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LAZY = {"tokenizers", "pyarrow", "huggingface_hub"}
TRAINING = {"torch", "ray", "mlflow"}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("sweeps.cli.main", TRAINING | LAZY | {"pandas", "scipy", "numpy", "matplotlib", "pydantic"}),
        ("sweeps.execution.engine sweeps.pipeline sweeps.plan.grid", TRAINING | LAZY | {"pandas", "scipy"}),
        ("fitting", TRAINING | {"matplotlib"}),
        (
            "trainer.config trainer.accounting trainer.memory trainer.run.environment trainer.data.batches",
            {"torch"} | LAZY,
        ),
    ],
)
def test_heavy_libraries_are_imported_late(modules, absent):
    code = "; ".join(f"import isoloop.{module}" for module in modules.split())
    code += f"; import sys; print(sorted(set({sorted(absent)}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_text_file_has_an_explicit_encoding():
    """The default is the locale's: ASCII under LC_ALL=C, and something else on other machines."""
    rooms = [Path(__file__).parents[1] / room for room in ("trainer", "fitting", "sweeps")]
    without = [
        f"{path}:{call.lineno}"
        for room in rooms
        for path in room.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and _is_text_file(call) and "encoding" not in {key.arg for key in call.keywords}
    ]
    assert without == []


def _is_text_file(call):
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    values = [*call.args, *(key.value for key in call.keywords)]
    modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    if name == "open":
        return not any("b" in mode for mode in modes) and ast.unparse(call.func) != "os.open"
    return name in ("read_text", "write_text") or (name == "run" and any(key.arg == "text" for key in call.keywords))
