"""Workers run the driver's code, without a shared home."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from isoloop.sweeps.execution import runtime_env as shipping
from isoloop.sweeps.execution.runtime_env import PASSED_ON, own_classes, runtime_environment

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Make a folder on Python's path with a module of the user's own, its imports, and unrelated files."""
    folder = tmp_path / "own"
    (folder / "beside").mkdir(parents=True)
    (folder / "my_blocks.py").write_text(
        "from beside.deep import x\nimport isoloop.trainer.model.layers\nclass Mine: y = x\n"
    )
    (folder / "beside" / "__init__.py").touch()
    (folder / "beside" / "deep.py").write_text("from my_numbers import x\n")
    (folder / "my_numbers.py").write_text("x = 42\n")
    (folder / "unrelated.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(folder)
    return folder


def test_our_packages_and_the_modules_of_own_classes_are_shipped(own):
    environment = {"AWS_REGION": "here-1", "AWS_SECRET_ACCESS_KEY": "hidden", "HOME": "/x"}
    made = runtime_environment(["my_blocks:Mine"], environment=environment)
    ours = {str(ROOT / "isoloop")}
    assert set(made["py_modules"]) == ours | {str(own / name) for name in ("my_blocks.py", "beside", "my_numbers.py")}
    commit = made["env_vars"].pop("ISOLOOP_COMMIT", None)
    assert (commit is not None) == (ROOT / ".git").exists()
    assert made["env_vars"] == {"AWS_REGION": "here-1"}
    stated = runtime_environment(environment={"ISOLOOP_COMMIT": "abc"})
    assert (set(stated["py_modules"]), stated["env_vars"]) == (ours, {"ISOLOOP_COMMIT": "abc"})
    assert set(runtime_environment(["torch.nn:Linear", "isoloop.trainer.model.layers:Block"])["py_modules"]) == ours


def test_a_ray_job_that_brings_an_environment_keeps_it():
    job = {"runtime_env": {"py_modules": ["gcs://x.zip"], "env_vars": {"AWS_REGION": "there-1"}}}
    environment = {"AWS_REGION": "there-1", "ISOLOOP_COMMIT": "abc", "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
    made = runtime_environment(environment=environment)
    assert "py_modules" not in made
    assert made["env_vars"] == {"ISOLOOP_COMMIT": "abc"}


def test_what_cannot_be_shipped_is_refused(own, monkeypatch):
    with pytest.raises(ValueError, match="no module for 'nowhere:Mine'"):
        runtime_environment(["nowhere:Mine"])
    assert not re.search("KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", " ".join(PASSED_ON))  # Ray logs these variables
    monkeypatch.setattr(shipping, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="must be of at most 0 MiB"):
        runtime_environment(["my_blocks:Mine"])


def test_own_classes_at_any_depth_of_a_configuration():
    configuration = {
        "model": {"injection": "mine.deep:Thing", "block": "pre-norm"},
        "axes": {"model.block": ["mine:Block", "pre-norm", "mine.deep:Thing"]},
        "storage": "s3://bucket/x",
        "budgets": (1e18,),
    }
    assert own_classes(configuration) == ["mine.deep:Thing", "mine:Block"]


DRIVER = """
import json, sys
root, own, temporary = sys.argv[1:]
sys.path[:0] = [root, own]
import ray
from isoloop.sweeps.execution.runtime_env import runtime_environment
ray.init(
    address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", num_cpus=1,
    runtime_env=runtime_environment(["my_blocks:Mine"]), _temp_dir=temporary,
)
@ray.remote
def look():
    import os, my_blocks
    from isoloop import fitting, sweeps, trainer
    files = [module.__file__ for module in (sweeps, trainer, fitting, my_blocks)]
    preset = open(sweeps.__path__[0] + "/config/presets/demo.yaml").read()
    return files, my_blocks.Mine.y, preset, os.environ.get("ISOLOOP_COMMIT")
print(json.dumps(ray.get(look.remote())))
ray.shutdown()
"""


def test_workers_import_what_was_shipped(own, tmp_path):
    """Neither the checkout nor the user's folder is on the path of Ray's processes."""
    temporary = tempfile.mkdtemp(prefix="isoloop-")  # not under tmp_path: the path of a socket must be short
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}}
    environment |= {
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "ISOLOOP_COMMIT": "abc",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, str(ROOT), str(own), temporary],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    files, number, preset, commit = json.loads(done.stdout.splitlines()[-1])
    assert all(Path(file).is_relative_to(temporary) for file in files), files
    assert (number, commit) == (42, "abc")
    assert preset.startswith("#")
