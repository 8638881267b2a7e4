"""Runs and corpora in a storage, complete or absent, on every kind of file system; machines that share nothing else."""

import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

from isoloop.sweeps.storage.filesystem import RemoteFolder, StorageError
from isoloop.sweeps.storage.lease import LeaseLostError
from isoloop.sweeps.storage.run_store import RunStore
from isoloop.sweeps.storage.sync import RunSync
from isoloop.trainer.files import FolderBusyError
from isoloop.trainer.loop import train
from isoloop.trainer.run.journal import Journal, read_journal

ROOT = Path(__file__).resolve().parents[3]
RUN = "run-1"


@pytest.fixture(scope="session")
def s3():
    """An S3 server in this process; its own S3 client is not ours."""
    server = pytest.importorskip(
        "moto.server", reason="moto speaks S3's protocol for the tests: pip install 'moto[s3]'"
    )
    from pyarrow.fs import FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    options = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    system, _ = FileSystem.from_uri(f"s3://key:hidden-word@bucket?{options}&allow_bucket_creation=true")
    system.create_dir("bucket")
    yield f"s3://key:hidden-word@bucket/{{}}?{options}"
    running.stop()


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def uri(request, tmp_path):
    """Return a fresh URI on each kind of file system."""
    kind = request.param
    if kind == "s3":
        return request.getfixturevalue("s3").format(uuid.uuid4().hex)
    place = tmp_path / "storage"
    return {"folder": str(place), "file": place.as_uri(), "memory": f"memory://isoloop/{uuid.uuid4().hex}"}[kind]


@pytest.fixture
def storage(uri):
    return RunStore(uri)


@pytest.fixture
def local(tmp_path):
    return RunStore(str(tmp_path / "storage"))


def save(folder, step, content=b"state"):
    place = folder / "checkpoints" / f"{step:08d}"
    place.mkdir(parents=True)
    (place / "state.pt").write_bytes(content)


def write_journal(folder, *steps):
    journal = Journal(folder / "journal.jsonl")
    for step in steps:
        journal.metrics(step, {"train_loss": 1.0 / step})
    journal.close()


def finish(folder):
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"weights")
    (folder / "result.json").write_text('{"loss": 1.0}')
    shutil.rmtree(folder / "checkpoints")


def journal_steps(folder):
    return [record["step"] for record in read_journal(folder / "journal.jsonl")[0] if record["kind"] == "metrics"]


def test_small_files_large_files_and_listings(uri, tmp_path):
    remote = RemoteFolder(uri)
    assert remote.list() == {}
    assert remote.read("a/b") is None
    remote.remove("a/b")
    remote.remove_folder("a")
    remote.write("a/b", b"1")
    remote.write("a/b", b"22")
    assert remote.read("a/b") == b"22"
    large = tmp_path / "large"
    large.write_bytes(os.urandom(6 * 2**20))
    assert remote.upload(large, "a/c/large") == 6 * 2**20
    assert {path: entry.size for path, entry in remote.list("a").items()} == {"b": 2, "c/large": 6 * 2**20}
    remote.download("a/c/large", tmp_path / "here" / "back", size=6 * 2**20)
    assert (tmp_path / "here" / "back").read_bytes() == large.read_bytes()
    with pytest.raises(StorageError, match="must have 7 bytes"):
        remote.download("a/c/large", tmp_path / "here" / "torn", size=7)
    assert not (tmp_path / "here" / "torn").exists()
    with pytest.raises(StorageError):
        remote.download("a/none", tmp_path / "here" / "none", size=7)
    for path in ("../a", "a/../../b", "a//b", ""):
        with pytest.raises(ValueError, match="must stay inside"):
            remote.write(path, b"")
    remote.remove_folder("a/c")
    assert set(remote.list()) == {"a/b"}
    RunStore(uri).check()
    assert set(remote.list()) == {"a/b"}


def test_a_run_travels_from_its_start_to_its_result(storage, tmp_path):
    here, there, out = tmp_path / "here", tmp_path / "there", tmp_path / "out"
    assert storage.pull_run(RUN, there) is False
    here.mkdir()
    (here / "spec.json").write_text("{}")
    (here / "heartbeat").touch()
    write_journal(here, 1, 2)
    for step in (1, 2, 3):
        save(here, step, b"x" * step)
        storage.push_run(here, RUN)
    published = storage.remote.list(f"runs/{RUN}")
    assert {path for path in published if path.startswith("checkpoints")} == {
        "checkpoints/00000002.json", "checkpoints/00000002/state.pt",
        "checkpoints/00000003.json", "checkpoints/00000003/state.pt",
    }  # fmt: skip
    storage.push_heartbeat(RUN, 1)
    reader = RunStore(storage.remote._uri)
    assert reader.pull_run(RUN, there) is False
    assert (there / "checkpoints" / "00000003" / "state.pt").read_bytes() == b"xxx"
    assert journal_steps(there) == [1, 2]

    assert reader.fetch_updates([RUN, "not-begun"], out) == [RUN]
    assert reader.fetch_updates([RUN], out) == []
    assert (out / "runs" / RUN / "heartbeat").exists()
    storage.push_heartbeat(RUN, 2)
    write_journal(here, 3)
    finish(here)
    storage.push_run(here, RUN)
    assert set(storage.remote.list(f"runs/{RUN}")) == {
        "spec.json", "journal.jsonl", "model/weights", "result.json", "pulse",
    }  # fmt: skip
    assert reader.fetch_updates([RUN], out) == [RUN]
    assert journal_steps(out / "runs" / RUN) == [1, 2, 3]
    assert json.loads((out / "runs" / RUN / "result.json").read_text()) == {"loss": 1.0}
    late = tmp_path / "late"
    assert reader.pull_run(RUN, late) is True
    assert {path.name for path in late.iterdir()} == {"journal.jsonl", "result.json"}


def test_a_published_file_is_not_sent_again_and_a_result_is_final(local, tmp_path, monkeypatch):
    here = tmp_path / "here"
    write_journal(here, 1)
    save(here, 1)
    (here / "spec.json").write_text("{}")
    local.push_run(here, RUN)
    again = RunStore(local.remote._uri)
    for method in ("write", "upload"):
        monkeypatch.setattr(again.remote, method, lambda *_: pytest.fail("nothing is new"))
    again.push_run(here, RUN)
    finish(here)
    local.push_run(here, RUN)
    (here / "result.json").write_text('{"loss": 2.0}')
    again.push_run(here, RUN)
    assert b"1.0" in local.remote.read(f"runs/{RUN}/result.json")


def test_a_checkpoint_counts_once_its_marker_exists_and_its_files_are_whole(storage, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    save(here, 1, b"first")
    storage.push_run(here, RUN)
    storage.remote.write(f"runs/{RUN}/checkpoints/00000002/state.pt", b"half of it")  # no marker
    storage.remote.write(f"runs/{RUN}/checkpoints/00000003/state.pt", b"half")
    storage.remote.write(f"runs/{RUN}/checkpoints/00000003.json", b'{"state.pt": 5}')
    storage.pull_run(RUN, there)
    assert [path.name for path in (there / "checkpoints").iterdir()] == ["00000001"]
    storage.remote.write(f"runs/{RUN}/checkpoints/00000004.json", b'{"../../state.pt": 5}')
    storage.pull_run(RUN, there)
    save(here, 5, b"fifth")
    storage.push_run(here, RUN)
    assert "checkpoints/00000002/state.pt" not in storage.remote.list(f"runs/{RUN}")


def test_what_is_newer_here_stays(local, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    save(here, 4, b"published")
    write_journal(here, 1, 2)
    local.push_run(here, RUN)
    shutil.copytree(here, there)
    save(there, 6, b"newer")
    write_journal(there, 3)
    before = (there / "journal.jsonl").read_bytes()
    local.pull_run(RUN, there)
    assert sorted(path.name for path in (there / "checkpoints").iterdir()) == ["00000004", "00000006"]
    assert (there / "journal.jsonl").read_bytes() == before


def test_journals_that_parted_go_on_where_they_were_read(local, tmp_path):
    """A's steps 3 and 4 were never published; B went on from step 2; A comes back. The driver's copy only grows."""
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    copy = out / "runs" / RUN / "journal.jsonl"
    write_journal(a, 1, 2)
    local.push_run(a, RUN)
    local.fetch_updates([RUN], out)
    read = [copy.read_bytes()]
    write_journal(a, 3, 4)
    local.pull_run(RUN, b)
    write_journal(b, 3)
    local.push_run(b, RUN)
    local.fetch_updates([RUN], out)
    read.append(copy.read_bytes())
    local.pull_run(RUN, a)
    assert journal_steps(a) == [1, 2, 3, 4]
    assert (a / "journal.jsonl").read_bytes().startswith(read[-1])
    local.push_run(a, RUN)
    local.fetch_updates([RUN], out)
    read.append(copy.read_bytes())
    # Another journal altogether, as when the storage was emptied: what was read stays, new steps are added.
    local.remote.remove_folder(f"runs/{RUN}")
    write_journal(tmp_path / "c", 4, 5, 6)
    local.push_run(tmp_path / "c", RUN)
    RunStore(local.remote._uri).fetch_updates([RUN], out)
    read.append(copy.read_bytes())
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(read))
    assert journal_steps(copy.parent) == [1, 2, 3, 4, 5, 6]


def test_news_of_many_runs_come_by_one_listing(local, tmp_path, monkeypatch):
    ids = [f"run-{number}" for number in range(40)]
    for run_id in ids:
        write_journal(tmp_path / run_id, 1)
        local.push_run(tmp_path / run_id, run_id)
    listed, listing = [], local.remote.list
    monkeypatch.setattr(local.remote, "list", lambda under="": listed.append(under) or listing(under))
    assert local.fetch_updates(ids, tmp_path / "out") == ids
    assert listed == ["runs"]
    local.request_stop(ids[:2])
    assert local.stop_requested(ids[0])
    local.clear_stop_request(ids)
    assert not local.stop_requested(ids[0])


def test_a_corpus_is_published_whole_and_fetched_once(storage, corpus, tmp_path, monkeypatch):
    fingerprint = corpus.facts.fingerprint
    with pytest.raises(ValueError, match="has no corpus"):
        storage.pull_corpus(fingerprint, tmp_path / "cache")
    assert storage.push_corpus(corpus.folder) == fingerprint
    folders = []
    readers = [
        threading.Thread(target=lambda: folders.append(storage.pull_corpus(fingerprint, tmp_path / "cache")))
        for _ in range(3)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert set(folders) == {tmp_path / "cache" / fingerprint}
    names = {path.name for path in corpus.folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert {path.name for path in folders[0].iterdir()} == names
    assert all((folders[0] / name).read_bytes() == (corpus.folder / name).read_bytes() for name in names)
    monkeypatch.setattr(storage.remote, "upload", lambda *_: pytest.fail("it is there"))
    storage.push_corpus(corpus.folder)


@contextmanager
def held(lease):
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


def test_one_lease_at_a_time_taken_over_when_stale(storage):
    with held(storage.lease(RUN, stale_seconds=2.0)) as lease:
        renewing = threading.Event()

        def renew():
            while not renewing.wait(0.05):
                lease.renew()

        thread = threading.Thread(target=renew)
        thread.start()
        with pytest.raises(FolderBusyError, match="holds runs/run-1/lease"):
            storage.lease(RUN, stale_seconds=20.0).acquire()  # it ends at the first renewal, however late that comes
        renewing.set()
        thread.join()
        heir = storage.lease(RUN, stale_seconds=2.0)
        heir.acquire()  # it isn't renewed any more
        with pytest.raises(LeaseLostError, match="has taken over"):
            lease.renew()
    heir.renew()  # the earlier one's end has not let go of it
    heir.release()
    with held(storage.lease(RUN, owner="driver")), held(storage.lease(RUN, owner="driver")):
        pass


def test_a_storage_that_cannot_be_hides_its_secrets(tmp_path):
    for uri, rule in (
        ("bogus://user:hidden-word@place", "Protocol not known"),
        ("s3://key:hidden-word@bucket?bogus=1", "Unexpected query parameter"),
        ("s3://key:hidden%2Fword@bucket?secret_key=hidden-word", "Unexpected query parameter"),
    ):
        with pytest.raises(ValueError, match=rule) as raised:
            RunStore(uri)
        assert "hidden" not in str(raised.value)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="check the URI"):
        RunStore(str(tmp_path / "file" / "below")).check()


def test_a_storage_that_refuses_hides_its_secrets(s3):
    with pytest.raises(ValueError, match="check the URI") as raised:
        RunStore(s3.replace("bucket/{}", "none/x")).check()
    assert "hidden" not in str(raised.value)
    assert "s3://***@none/x" in str(raised.value)


def test_a_sync_publishes_beats_and_hears_the_driver(local, tmp_path):
    here, out = tmp_path / "here", tmp_path / "out"
    here.mkdir()
    (here / "stop").touch()  # of an earlier time
    with RunSync(local, RUN, here, seconds=0.05) as sync:
        assert not sync.finished
        assert not (here / "stop").exists()
        save(here, 1)
        (here / "heartbeat").touch()
        write_journal(here, 1)
        driver = RunStore(local.remote._uri)
        wait_for(lambda: driver.fetch_updates([RUN], out) and (out / "runs" / RUN / "heartbeat").exists())
        wait_for(lambda: "checkpoints/00000001.json" in driver.remote.list(f"runs/{RUN}"))
        driver.request_stop([RUN])
        wait_for((here / "stop").exists)
        write_journal(here, 2)
    driver.fetch_updates([RUN], out)
    assert journal_steps(out / "runs" / RUN) == [1, 2]
    assert not {"lease.json", "stop"} & set(driver.remote.list(f"runs/{RUN}"))


def test_a_sync_publishes_all_files_when_the_training_fails(local, tmp_path):
    def fail():
        with RunSync(local, RUN, tmp_path / "here"):
            save(tmp_path / "here", 1)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert {"checkpoints/00000001.json", "checkpoints/00000001/state.pt"} == set(local.remote.list(f"runs/{RUN}"))


def test_a_sync_whose_run_was_taken_over_stops_it(local, tmp_path):
    other = RunStore(local.remote._uri).lease(RUN, owner="driver")

    def be_overtaken():
        with RunSync(local, RUN, tmp_path / "here", owner="driver", seconds=0.05) as sync:
            other.acquire()
            wait_for((tmp_path / "here" / "stop").exists)
            assert sync.lease_lost
            save(tmp_path / "here", 1)

    with pytest.raises(FolderBusyError, match="took run-1 over"):
        be_overtaken()
    assert set(local.remote.list(f"runs/{RUN}")) == {"lease.json"}
    other.renew()


def test_a_storage_that_is_away_disturbs_nothing_until_the_end(local, tmp_path, monkeypatch):
    place, away = tmp_path / "storage", tmp_path / "away"
    with RunSync(local, RUN, tmp_path / "here", seconds=0.05, timeout=20) as sync:
        place.rename(away)
        place.touch()
        save(tmp_path / "here", 1)
        time.sleep(0.2)
        back = threading.Timer(0.3, lambda: (place.unlink(), away.rename(place)))
        back.start()
    back.join()
    assert not sync.lease_lost
    assert "checkpoints/00000001.json" in local.remote.list(f"runs/{RUN}")

    def lose_it():
        with RunSync(local, RUN, tmp_path / "here", seconds=0.05, timeout=0.1):
            shutil.rmtree(place)
            place.touch()

    with pytest.raises(StorageError, match=rf"nothing is lost: it is in {tmp_path / 'here'}"):
        lose_it()


def wait_for(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


PUSHER = """
import sys, time
from pathlib import Path
from isoloop.sweeps.storage.run_store import RunStore
uri, folder, slow = sys.argv[1:]
storage = RunStore(uri)
inside = storage.remote._system
class Slow:
    type_name = inside.type_name
    def __getattr__(self, name): return getattr(inside, name)
    def open_output_stream(self, path):
        stream = inside.open_output_stream(path)
        if path.endswith(slow):
            stream.write(b"half")
            stream.flush()
            print("in the middle", flush=True)
            time.sleep(60)
        return stream
storage.remote._system = Slow()
storage.push_run(Path(folder), "run-1")
"""


@pytest.mark.parametrize(
    ("kind", "slow"),
    [("folder", "state.pt")]
    + [("s3", slow) for slow in ("state.pt", "00000002.json", "journal.jsonl", "weights", "result.json")],
)
def test_a_push_killed_in_its_middle_leaves_the_last_whole_state(kind, slow, request, tmp_path):
    uri = request.getfixturevalue("s3").format(uuid.uuid4().hex) if kind == "s3" else str(tmp_path / "storage")
    here, there, storage = tmp_path / "here", tmp_path / "there", RunStore(uri)
    save(here, 1, b"first")
    write_journal(here, 1)
    storage.push_run(here, RUN)
    published = storage.remote.read(f"runs/{RUN}/journal.jsonl")
    save(here, 2, b"second")
    write_journal(here, 2)
    if slow in {"weights", "result.json"}:
        finish(here)
    target = slow if kind == "s3" else ".partial"
    arguments = [sys.executable, "-c", PUSHER, uri, str(here), target]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as pusher:
        assert pusher.stdout.readline() == "in the middle\n"
        pusher.send_signal(signal.SIGKILL)
    assert storage.pull_run(RUN, there) is False
    assert [path.name for path in (there / "checkpoints").iterdir()] == ["00000001"]
    assert (there / "journal.jsonl").read_bytes().startswith(published)
    storage.push_run(here, RUN)  # whoever goes on mends it
    if (here / "result.json").exists():
        assert storage.pull_run(RUN, there) is True
        assert not any("checkpoints" in path for path in storage.remote.list(f"runs/{RUN}"))
    else:
        storage.pull_run(RUN, there)
        assert (there / "checkpoints" / "00000002" / "state.pt").read_bytes() == b"second"
    assert journal_steps(there) == [1, 2]


NODE = """
import sys
from pathlib import Path
from isoloop.sweeps.storage.sync import RunSync
from isoloop.sweeps.storage.run_store import RunStore
from isoloop.trainer.config import ExecutionConfig, RunSpec
from isoloop.trainer.data.corpus import Corpus
from isoloop.trainer.loop import train
uri, folder, cache, spec = sys.argv[1:]
spec, folder, storage = RunSpec.model_validate_json(spec), Path(folder), RunStore(uri)
corpus = Corpus(storage.pull_corpus(spec.data_fingerprint, Path(cache)))
steps = iter(range(1, spec.steps + 1))
def wait_at_the_seventh():
    if next(steps) == 7:
        while "checkpoints/00000006.json" not in storage.remote.list(f"runs/{spec.run_id}"):
            pass
        print("trained to step 6", flush=True)
        input()
    return False
with RunSync(storage, spec.run_id, folder, owner="driver", seconds=0.02):
    train(spec, corpus, folder, execution=ExecutionConfig(checkpoint_seconds=1e-9), should_stop=wait_at_the_seventh)
"""


def test_a_run_killed_on_one_machine_goes_on_on_another_to_the_same_bits(s3, corpus, spec, tmp_path):
    storage, out = RunStore(s3.format(uuid.uuid4().hex)), tmp_path / "out"
    undisturbed = train(spec, corpus, tmp_path / "quiet")
    storage.push_corpus(corpus.folder)
    arguments = [storage.remote._uri, str(tmp_path / "a"), str(tmp_path / "cache-a"), spec.model_dump_json()]
    with subprocess.Popen(
        [sys.executable, "-c", NODE, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as node:
        assert node.stdout.readline() == "trained to step 6\n"
        node.send_signal(signal.SIGKILL)
    storage.fetch_updates([spec.run_id], out)
    seen = (out / "runs" / spec.run_id / "journal.jsonl").read_bytes()
    node_b = tmp_path / "b"
    with RunSync(storage, spec.run_id, node_b, owner="driver", seconds=0.05):
        assert [path.name for path in (node_b / "checkpoints").iterdir()] == ["00000006"]
        result = train(spec, corpus, node_b)
    resumed = [r["step"] for r in read_journal(node_b / "journal.jsonl")[0] if r.get("name") == "resumed"]
    assert resumed == [6]
    assert result.model_copy(update={"seconds": undisturbed.seconds}) == undisturbed
    storage.fetch_updates([spec.run_id], out)
    copy = out / "runs" / spec.run_id
    assert (copy / "journal.jsonl").read_bytes().startswith(seen)
    assert (copy / "result.json").read_bytes() == (node_b / "result.json").read_bytes()
    quiet = {r["step"]: r["values"]["train_loss"] for r in metrics(tmp_path / "quiet")}
    assert {r["step"]: r["values"]["train_loss"] for r in metrics(copy)} == quiet
    assert [r["step"] for r in metrics(copy)] == sorted(quiet)


def metrics(folder):
    return [record for record in read_journal(folder / "journal.jsonl")[0] if record["kind"] == "metrics"]
