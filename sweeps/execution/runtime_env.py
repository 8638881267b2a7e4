"""The runtime environment of workers on other machines: our own package, the user's modules, a few settings.

Ray packs these folders, keeps the archives in the cluster's own store and unpacks them on each node, ahead of whatever
is installed there: workers run the driver's code even where an older isoloop is installed. Only the driver's current
folder and its script's take precedence, if a node has folders of these names. Other packages (torch, ray, pyarrow, ...)
must be installed on the nodes, in the driver's versions.

A runtime environment must hold no secrets: Ray writes it into its logs (Ray 2.60 into runtime_env_agent.log) and keeps
it in the cluster's store. Each node needs its own credentials for the storage: a role, a mounted secret, or variables
that it was started with.
"""

import ast
import importlib.util
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import isoloop
from isoloop.sweeps.privacy import TELEMETRY_OFF
from isoloop.trainer.config import CLASS_PATH
from isoloop.trainer.run.environment import COMMIT_VARIABLE

# Settings without secrets. Workers never talk to MLflow or Hugging Face.
PASSED_ON = (
    *TELEMETRY_OFF, "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
    "GOOGLE_CLOUD_PROJECT",
)  # fmt: skip
MOST_BYTES = 100 * 2**20
EXCLUDED = ("__pycache__", ".git", "*.pyc")
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in a job; there is no public function that reads it


def runtime_environment(
    own_classes: Iterable[str] = (), *, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the `runtime_env` with which `ray.init` gives the workers the driver's code and settings.

    Args:
        own_classes: the user's own classes in the sweep, as `module:Class`. The file of each is sent with the modules
            and packages beside it that it imports; installed packages must be installed on the nodes, too.
        environment: the variables; by default the process's own.

    Raises:
        ValueError: a module can't be found or is too large to send.
    """
    environment = os.environ if environment is None else environment
    package = Path(isoloop.__file__).parent
    modules = [package]
    for path in own_classes:
        modules += [module for module in _modules(path) if module not in modules]
    variables = {name: environment[name] for name in PASSED_ON if name in environment}
    commit = environment.get(COMMIT_VARIABLE) or _git_commit(package)
    if commit:
        variables[COMMIT_VARIABLE] = commit
    runtime_env = {"py_modules": [str(module) for module in modules], "excludes": list(EXCLUDED), "env_vars": variables}
    return _without_job_keys(runtime_env, json.loads(environment.get(JOB_VARIABLE, "{}")).get("runtime_env", {}))


def own_classes(configuration: Any) -> list[str]:
    """Return the values of the form `module:Class` in a configuration, at any depth, in order, once each."""
    if isinstance(configuration, str):
        return [configuration] if CLASS_PATH.fullmatch(configuration) else []
    if isinstance(configuration, Mapping):
        configuration = list(configuration.values())
    if not isinstance(configuration, list | tuple):
        return []
    return list(dict.fromkeys(name for value in configuration for name in own_classes(value)))


def _without_job_keys(runtime_env: dict[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a Ray job's own runtime environment doesn't have yet: Ray refuses a key that is given twice."""
    given = job.get("env_vars", {})
    variables = {name: value for name, value in runtime_env["env_vars"].items() if name not in given}
    return {key: value for key, value in runtime_env.items() if key not in job} | {"env_vars": variables}


def _modules(path: str) -> list[Path]:
    """Return the files and package folders of the module of one `module:Class`, and of its imports beside it."""
    top = path.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        raise ValueError(
            f"a class of your own must be importable as module:Class, but there is no module for '{path}'; start "
            "isoloop with PYTHONPATH naming the folder of the module"
        )
    if spec.submodule_search_locations:
        origin = Path(next(iter(spec.submodule_search_locations)))
    else:
        origin = Path(str(spec.origin))
    if top == "isoloop" or "site-packages" in origin.parts or not origin.exists():
        return []
    paths = list(dict.fromkeys(_with_imports(origin, set())))
    size = sum(file.stat().st_size for each in paths for file in _files(each))
    if size > MOST_BYTES:
        raise ValueError(
            f"the code of '{path}' must be of at most {MOST_BYTES >> 20} MiB to be sent to the workers, but "
            f"{', '.join(map(str, paths))} hold {size >> 20} MiB; keep data out of the package's folder, or install "
            "the package on the nodes"
        )
    return paths


def _with_imports(path: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield a file or folder and, from the same folder, whatever it imports."""
    if path in seen:
        return
    seen.add(path)
    yield path
    for file in _files(path):
        if file.suffix == ".py":
            for top in _imported(file):
                for neighbour in (path.parent / f"{top}.py", path.parent / top):
                    if top != "isoloop" and (neighbour.is_file() or (neighbour / "__init__.py").is_file()):
                        yield from _with_imports(neighbour, seen)


def _imported(file: Path) -> set[str]:
    """Return the top-level names that a Python file imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in names} - {""}


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]


def _git_commit(package: Path) -> str | None:
    """Return the commit of the checkout that holds `package`, with `+` if its code was changed, or None."""
    git = ["git", "-C", str(package)]
    code = [str(path.resolve()) for path in (package, *package.iterdir()) if path.is_dir()]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", timeout=10, check=True
        )
        state = subprocess.run(
            [*git, "status", "--porcelain", *code],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if state.stdout.strip() else "")
