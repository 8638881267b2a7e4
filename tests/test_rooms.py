"""What a command need not wait for is imported late. Who may import whom: the contracts in pyproject.toml."""

import subprocess
import sys

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
