"""What several rooms' tests share: a small corpus, a small spec, and the reference numbers where they are to be had."""

import gc
import os
import re
import shutil
import warnings
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import torch
from filelock import FileLock
from xdist.scheduler import LoadFileScheduling

from isoloop.trainer.config import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    RecurrenceConfig,
    RunSpec,
)
from isoloop.trainer.data.corpus import Corpus, prepare_corpus
from tests.parquet import document, write_parquet
from tests.sweeps.execution.faulty import FAULTS

# Two processes of tests share two cores, and each starts others: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"RAY_worker_niceness": "0"}  # Ray's own is 15, with which a run hardly gets on beside other tests
os.environ.pop("RAY_ADDRESS", None)  # tests run on Rays of their own
SHARED = Path(__file__).resolve().parents[2] / "shared"


@cache
def ray_group(file):
    """Which Rays the tests of a file use, by the fixtures that it names; None if none."""
    text = file.read_text(encoding="utf-8")
    if re.search(r"\bno_ray\b", text):
        return "own Rays"
    return "shared Ray" if re.search(r"shared_ray|commands_share_ray|[(,] ?ray[,)]", text) else None


class FilesAndRays(LoadFileScheduling):
    """Gives files to processes one by one, but all that share a Ray to one process, and all that start their own.

    The files are read for that: this process collects no tests, and groups of xdist's own need an older pytest.
    """

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return ray_group(self.config.rootpath / file) or file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return FilesAndRays(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items):
    """Begin with the tests that use Ray, which wait a lot."""
    items.sort(key=lambda item: ("shared_ray" not in item.fixturenames, "no_ray" in item.fixturenames))


def pytest_collection_finish():
    """Keep what has been imported out of garbage collections: the one at each run's end would take half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers beside the checkout; tests that need it skip where it is absent."""
    if not (SHARED / "fixtures").is_dir():
        pytest.skip("the reference numbers (../shared/fixtures) are not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    """A folder of a few text files, enough for a small run."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(8):
        lines = [f"line {i} of file {number}: {'abcdefgh'[i % 8] * (i % 5 + 1)}\n" for i in range(200)]
        (folder / f"file{number}.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def parquet_folder(tmp_path_factory) -> Path:
    """Three parquet files of 100 documents each, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("parquet")
    for number, name in enumerate(("a.parquet", "b.parquet", "more/c.parquet")):
        write_parquet(folder / name, [document(number * 100 + row) for row in range(100)])
    return folder


@pytest.fixture(scope="session")
def corpus(text_folder, tmp_path_factory) -> Corpus:
    return prepare_corpus(DataConfig(corpus=str(text_folder)), tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def spec(corpus) -> RunSpec:
    """A run of seconds."""
    return RunSpec(
        model=ModelConfig(width=16, heads=2, context=16),
        recurrence=RecurrenceConfig(mean=3),
        data_fingerprint=corpus.facts.fingerprint,
        evaluation=EvaluationConfig(sequences=8, recurrences=(1, 2, 4)),
        batch=4,
        steps=12,
    )


class SharedRay:
    """The local Ray of this process of the tests: started at its first use, and there until the end."""

    cluster = None

    def start(self):
        if self.cluster is None:
            from isoloop.sweeps.execution.ray_cluster import RayCluster

            self.cluster = RayCluster()
        return self.cluster

    def stop(self):
        if self.cluster is not None:
            self.cluster.__exit__()
            self.cluster = None

    @contextmanager
    def for_commands(self):
        """Let commands within this process use this Ray instead of starting their own."""
        from isoloop.sweeps.execution import ray_cluster

        shared = nullcontext(self.start())
        with mock.patch.object(ray_cluster, "RayCluster", return_value=shared):
            yield


@pytest.fixture(scope="session")
def faults(tmp_path_factory):
    """The folder that tells runs what goes wrong (tests/sweeps/execution/faulty.py)."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def shared_ray(faults):
    shared = SharedRay()
    os.environ[FAULTS] = str(faults)  # Ray's workers have the environment in which it was started
    yield shared
    shared.stop()
    del os.environ[FAULTS]


@pytest.fixture
def ray(shared_ray):
    """A local Ray that other tests have used and will use."""
    return shared_ray.start()


@pytest.fixture(scope="module")
def no_ray(shared_ray):
    """No Ray in this process, for tests that start their own."""
    shared_ray.stop()


@pytest.fixture
def commands_share_ray(shared_ray):
    with shared_ray.for_commands():
        yield


@pytest.fixture(scope="session")
def new_database(tmp_path_factory):
    """Makes an sqlite store without runs at a path: a copy, since making its tables takes seconds."""
    from isoloop.sweeps.tracking.mlflow_store import TrackingStore

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "empty"  # of all processes of the tests
    folder.mkdir(exist_ok=True)
    empty = folder / "mlflow.db"
    with FileLock(folder / "lock"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow's own use of SQLAlchemy, at its first use in each process
        TrackingStore(f"sqlite:///{empty}", "unused", artifacts=folder)
    gc.freeze()  # MLflow, too, is left out of collections

    def make(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(empty, path)
        return f"sqlite:///{path}"

    return make
