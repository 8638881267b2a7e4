"""Run folders and corpora in a folder on any file system, for workers and drivers that share no disk.

    <storage>/runs/<run id>/    spec.json  journal.jsonl  model/  result.json   as in the run's own folder
                                checkpoints/<step>/state.pt   checkpoints/<step>.json (complete; its files' sizes)
                                branches/<step>...            the same, of states from which other runs start
                                pulse (the heartbeat)  lease.json (the worker that trains it)  stop (a request)
    <storage>/sweeps/<name>/    plan.json  driver.json  state.json   as in the driver's --out, for `isoloop status`
    <storage>/corpora/<fingerprint>/...   corpora/<fingerprint>.json (complete; its files' sizes)

A process may end anywhere, so the file that a reader trusts is written last. A checkpoint counts once its marker
exists, which comes after the journal up to it; a run is finished once its result exists, which comes after all else.
A journal only ever grows for a reader.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from isoloop.sweeps.storage.filesystem import FileInfo, RemoteFolder, StorageError
from isoloop.sweeps.storage.lease import STALE_SECONDS, Lease
from isoloop.trainer.files import open_atomically, owner_in_turn, write_atomically
from isoloop.trainer.run.branch import BRANCHES
from isoloop.trainer.run.checkpoint import checkpoints
from isoloop.trainer.run.journal import whole_lines

Output = TypeVar("Output")
# In a run's local folder: touched when the run makes a step; exists while the run is asked to save and end.
HEARTBEAT_FILE, STOP_FILE = "heartbeat", "stop"
STATUS_FILES = ("plan.json", "driver.json", "state.json")
KEEP_CHECKPOINTS = 2
TRANSFERS_AT_ONCE = 8
LIST_SEPARATELY = 32  # up to so many runs are listed one by one, more of them all together


class RunStore:
    """The runs and corpora of a sweep at `uri`, a folder or any URI that pyarrow or fsspec can open.

    One object is for one process; it remembers what it has sent and fetched, so that nothing moves twice.

    Raises:
        ValueError: no file system is known for the URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.remote = uri, RemoteFolder(uri)
        self._sent: dict[str, tuple[int, int]] = {}
        self._fetched: dict[str, FileInfo] = {}
        self._heartbeats: dict[str, bytes] = {}

    def check(self) -> None:
        """Write a small file, read it back and remove it.

        Raises:
            ValueError: the storage doesn't allow that.
        """
        path = f"check-{os.getpid()}"
        try:
            self.remote.write(path, b"isoloop")
            if self.remote.read(path) != b"isoloop":
                raise StorageError(f"the storage {self.remote.name} must return what was written, but doesn't")
            self.remote.remove(path)
        except StorageError as error:
            raise ValueError(f"{error}; check the URI, the credentials and what they allow") from error

    def push_run(self, folder: Path, run_id: str) -> None:
        """Publish what is new in a run's local folder; a published result is final, and ends it.

        Raises:
            FileNotFoundError: the run replaced a file meanwhile; call again.
            StorageError: the storage can't be used now; call again.
        """
        run = _run_path(run_id)
        published = self.remote.list(run)
        if "result.json" not in published:
            # Check for the result first: when it exists, everything else is complete.
            is_finished = (folder / "result.json").exists()
            saved = checkpoints(folder / "checkpoints")
            # States for others come before the checkpoint or the result that tells that the run has passed them.
            for branch in checkpoints(folder / BRANCHES):
                branch_sizes = self._push_checkpoint(branch, run, published)
                if branch_sizes is not None:
                    self.remote.write(f"{run}/{BRANCHES}/{branch.name}.json", json.dumps(branch_sizes).encode())
                shutil.rmtree(branch)
            sizes = None
            if saved and not is_finished:
                sizes = self._push_checkpoint(saved[-1], run, published)
            # Journal and spec come before the marker or the result that completes them.
            journal = _local_journal(folder)
            if len(journal) > (published["journal.jsonl"].size if "journal.jsonl" in published else 0):
                self.remote.write(f"{run}/journal.jsonl", journal)
            if "spec.json" not in published and (folder / "spec.json").exists():
                self.remote.upload(folder / "spec.json", f"{run}/spec.json")
            if sizes is not None:
                step = saved[-1].name
                self.remote.write(f"{run}/checkpoints/{step}.json", json.dumps(sizes).encode())
                published |= {f"checkpoints/{step}.json": FileInfo(0, None), f"checkpoints/{step}/": FileInfo(0, None)}
            if not is_finished:
                self._drop_checkpoints(run, published, keep=KEEP_CHECKPOINTS)
                return
            for path in sorted([*folder.glob("model/*"), *folder.glob("best-model/*")]):
                self._push_if_changed(path, f"{run}/{path.relative_to(folder).as_posix()}")
            self.remote.upload(folder / "result.json", f"{run}/result.json")
        self._drop_checkpoints(run, published, keep=0)

    def pull_run(self, run_id: str, folder: Path) -> bool:
        """Fetch a finished run's result, or a run's newest checkpoint, into its local folder.

        Newer checkpoints here stay. The journal becomes the published one, followed by the steps that only this
        folder's has, so that others can go on reading it where they were.

        Returns:
            True if the run has a result.

        Raises:
            StorageError: the storage can't be used now.
        """
        run = _run_path(run_id)
        if (folder / "result.json").exists():
            return True
        published = self.remote.list(run)
        is_finished = "result.json" in published
        if not is_finished:
            self._pull_checkpoint(folder, run, published)
        if "journal.jsonl" in published:
            local = _local_journal(folder)
            _replace_journal(folder, local, _joined_journal(self._published_journal(run), local))
        if is_finished:
            self._fetch_result(run, published["result.json"], folder)
        return is_finished

    def saved_steps(self, run_ids: list[str]) -> dict[str, tuple[int, frozenset[int]]]:
        """Return the steps of each run's newest checkpoint (0 without one), and of the states that it saved for others.

        Raises:
            StorageError: the storage can't be used now.
        """
        steps: dict[str, tuple[int, frozenset[int]]] = {}
        for run_id, files in self._list_runs(run_ids).items():
            markers = [re.fullmatch(rf"(checkpoints|{BRANCHES})/(\d+)\.json", path) for path in files]
            found = [(match[1], int(match[2])) for match in markers if match]
            newest = max((step for kind, step in found if kind == "checkpoints"), default=0)
            steps[run_id] = newest, frozenset(step for kind, step in found if kind == BRANCHES)
        return steps

    def pull_branch(self, run_id: str, step: int, place: Path) -> bool:
        """Fetch the state that a run saved for others after `step` steps; return False if it isn't there.

        Raises:
            StorageError: the storage can't be used now.
        """
        run = _run_path(run_id)
        return self._pull_state(f"{run}/{BRANCHES}/{step:08d}", place, self.remote.list(run), run)

    def drop_branch(self, run_id: str, step: int) -> None:
        """Remove the state that a run saved for others after `step` steps.

        Raises:
            StorageError: the storage can't be used now.
        """
        place = f"{_run_path(run_id)}/{BRANCHES}/{step:08d}"
        self.remote.remove(f"{place}.json")
        self.remote.remove_folder(place)

    def fetch_updates(self, run_ids: Iterable[str], out: Path) -> list[str]:
        """Fetch journals, heartbeats and results that changed into the driver's `out/runs/<run id>/`.

        A run's result arrives after all of its journal; `heartbeat` there is touched when its worker made a step.

        Returns:
            The runs that changed.

        Raises:
            StorageError: the storage can't be used now; what has arrived stays.
        """
        unfinished = [run_id for run_id in run_ids if not (out / "runs" / run_id / "result.json").exists()]
        listed = self._list_runs(unfinished)
        changed = _in_parallel(lambda run_id: self._fetch(run_id, listed[run_id], out / "runs" / run_id), unfinished)
        return [run_id for run_id, has_changed in zip(unfinished, changed, strict=True) if has_changed]

    def push_status(self, name: str, folder: Path) -> None:
        """Publish what a driver says of the sweep `name`, from the sweep's folder.

        Raises:
            StorageError: the storage can't be used now; call again.
        """
        for file in STATUS_FILES:
            with suppress(FileNotFoundError):
                self._push_if_changed(folder / file, f"{_sweep_path(name)}/{file}")

    def fetch_status(self, name: str, folder: Path) -> None:
        """Fetch what the driver of the sweep `name` says of it into a folder; nothing if there is no such sweep.

        Raises:
            StorageError: the storage can't be used now.
        """
        for file in STATUS_FILES:
            content = self.remote.read(f"{_sweep_path(name)}/{file}")
            if content is not None and not ((folder / file).exists() and (folder / file).read_bytes() == content):
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / file, content.decode())

    def push_corpus(self, folder: Path) -> str:
        """Publish a prepared corpus unless it is published, and return its fingerprint.

        Raises:
            StorageError: the storage can't be used now; call again.
        """
        fingerprint = _checked_name(json.loads((folder / "corpus.json").read_text(encoding="utf-8"))["fingerprint"])
        corpus, marker = f"corpora/{fingerprint}", f"corpora/{fingerprint}.json"
        if self.remote.read(marker) is None:
            sizes = {
                path.name: path.stat().st_size
                for path in sorted(folder.iterdir())
                if path.is_file() and not path.name.startswith(".")
            }
            sent = {name: info.size for name, info in self.remote.list(corpus).items()}
            missing = [name for name, size in sizes.items() if sent.get(name) != size]
            _in_parallel(lambda name: self.remote.upload(folder / name, f"{corpus}/{name}"), missing)
            self.remote.write(marker, json.dumps(sizes).encode())
        return fingerprint

    def pull_corpus(self, fingerprint: str, cache: Path) -> Path:
        """Return the folder of a published corpus under `cache`, fetched once for all processes of this machine.

        Raises:
            ValueError: there is no such corpus in the storage.
            StorageError: the storage can't be used now; what has arrived stays.
        """
        folder = cache / _checked_name(fingerprint)
        if (folder / "corpus.json").exists():
            return folder
        lock = cache / "requests" / f"pull-{fingerprint}"
        with owner_in_turn(lock, waiting=lambda: None):
            if (folder / "corpus.json").exists():
                return folder
            marker = self.remote.read(f"corpora/{fingerprint}.json")
            if marker is None:
                raise ValueError(
                    f"a corpus must be published before use, but {self.remote.name} has no corpus {fingerprint}; "
                    "rerun the command, which publishes it"
                )
            sizes = {_checked_name(name): size for name, size in json.loads(marker).items()}
            building = lock / "building"
            present = {path.name: path.stat().st_size for path in building.glob("*")}
            missing = [name for name, size in sizes.items() if present.get(name) != size]
            _in_parallel(
                lambda name: self.remote.download(f"corpora/{fingerprint}/{name}", building / name, size=sizes[name]),
                missing,
            )
            os.replace(building, folder)
        return folder

    def lease(self, run_id: str, *, owner: str | None = None, stale_seconds: float = STALE_SECONDS) -> Lease:
        """Return the lease on a run, not acquired yet."""
        return Lease(self.remote, f"{_run_path(run_id)}/lease.json", owner=owner, stale_seconds=stale_seconds)

    def push_heartbeat(self, run_id: str, time_ns: int) -> None:
        """Publish the time of a run's heartbeat on the worker's clock."""
        self.remote.write(f"{_run_path(run_id)}/pulse", str(time_ns).encode())

    def request_stop(self, run_ids: Iterable[str]) -> None:
        """Ask the workers of these runs to save their state and end; they look every few seconds."""
        _in_parallel(lambda run_id: self.remote.write(f"{_run_path(run_id)}/stop", b"stop"), run_ids)

    def clear_stop_request(self, run_ids: Iterable[str]) -> None:
        """Remove stop requests, also those of an earlier driver."""
        for run_id, files in self._list_runs(list(run_ids)).items():
            if "stop" in files:
                self.remote.remove(f"{_run_path(run_id)}/stop")

    def stop_requested(self, run_id: str) -> bool:
        """Return whether this run is asked to stop."""
        return self.remote.read(f"{_run_path(run_id)}/stop") is not None

    def _push_checkpoint(self, local: Path, run: str, published: Mapping[str, FileInfo]) -> dict[str, int] | None:
        """Send the files of one checkpoint and return their sizes; None if it is published."""
        place = f"{local.parent.name}/{local.name}"
        if f"{place}.json" in published:
            return None
        files = sorted(path for path in local.rglob("*") if path.is_file())
        if not files:
            raise FileNotFoundError(local)
        names = {path: path.relative_to(local).as_posix() for path in files}
        return {name: self.remote.upload(path, f"{run}/{place}/{name}") for path, name in names.items()}

    def _drop_checkpoints(self, run: str, published: Mapping[str, FileInfo], *, keep: int) -> None:
        """Remove all but the newest `keep` published checkpoints, and incomplete ones older than those."""
        steps = {path.split("/")[1].removesuffix(".json") for path in published if path.startswith("checkpoints/")}
        if not keep:
            if steps:
                self.remote.remove_folder(f"{run}/checkpoints")
            return
        complete = sorted(step for step in steps if f"checkpoints/{step}.json" in published)
        for step in sorted(steps - set(complete[-keep:])):
            if complete and step < complete[-1]:
                self.remote.remove(f"{run}/checkpoints/{step}.json")
                self.remote.remove_folder(f"{run}/checkpoints/{step}")

    def _push_if_changed(self, path: Path, target: str) -> None:
        """Send a file unless this process has sent it as it is."""
        state = path.stat()
        signature = (state.st_size, state.st_mtime_ns)
        if self._sent.get(target) != signature:
            self.remote.upload(path, target)
            self._sent[target] = signature

    def _pull_checkpoint(self, folder: Path, run: str, published: Mapping[str, FileInfo]) -> None:
        """Fetch the newest complete checkpoint if it is newer than the newest here."""
        local = [path.name for path in checkpoints(folder / "checkpoints")]
        markers = (path.split("/")[1] for path in published if path.startswith("checkpoints/") and path.count("/") == 1)
        steps = (name.removesuffix(".json") for name in markers if name.endswith(".json"))
        for step in sorted((step for step in steps if step.isdigit()), reverse=True):
            if local and step <= local[-1]:
                return
            if self._pull_state(f"{run}/checkpoints/{step}", folder / "checkpoints" / step, published, run):
                return

    def _pull_state(self, path: str, place: Path, published: Mapping[str, FileInfo], run: str) -> bool:
        """Fetch the files of a checkpoint of a run, and return whether it is complete in the storage."""
        sizes = json.loads(self.remote.read(f"{path}.json") or b"{}")
        files = {name: f"{path}/{name}".removeprefix(f"{run}/") for name in sizes}
        if not sizes or any(f not in published or published[f].size != sizes[name] for name, f in files.items()):
            return False
        building = place.parent / f".building-{place.name}"
        shutil.rmtree(building, ignore_errors=True)
        for name, size in sizes.items():
            for part in name.split("/"):
                _checked_name(part)
            self.remote.download(f"{path}/{name}", building / name, size=size)
        os.replace(building, place)
        return True

    def _list_runs(self, run_ids: list[str]) -> dict[str, dict[str, FileInfo]]:
        """Return the published files of each run."""
        if len(run_ids) <= LIST_SEPARATELY:
            listings = _in_parallel(lambda run_id: self.remote.list(_run_path(run_id)), run_ids)
            return dict(zip(run_ids, listings, strict=True))
        files: dict[str, dict[str, FileInfo]] = {run_id: {} for run_id in run_ids}
        for path, info in self.remote.list("runs").items():
            run_id, _, rest = path.partition("/")
            if run_id in files:
                files[run_id][rest] = info
        return files

    def _fetch(self, run_id: str, published: Mapping[str, FileInfo], folder: Path) -> bool:
        """Fetch what has changed of one run, and return whether anything has."""
        run, changed = _run_path(run_id), False
        if not published:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        if "spec.json" in published and not (folder / "spec.json").exists():
            self.remote.download(f"{run}/spec.json", folder / "spec.json", size=published["spec.json"].size)
        if self._may_have_changed(f"{run}/journal.jsonl", published):
            # The local journal has been read up to some byte, so it stays, whatever journal is published.
            local = _local_journal(folder)
            changed |= _replace_journal(folder, local, _joined_journal(local, self._published_journal(run)))
            self._fetched[f"{run}/journal.jsonl"] = published["journal.jsonl"]
        if self._may_have_changed(f"{run}/pulse", published):
            heartbeat = self.remote.read(f"{run}/pulse") or b""
            if heartbeat != self._heartbeats.get(run_id):
                (folder / HEARTBEAT_FILE).touch()
                self._heartbeats[run_id], changed = heartbeat, True
            self._fetched[f"{run}/pulse"] = published["pulse"]
        if "result.json" in published:
            self._fetch_result(run, published["result.json"], folder)
            changed = True
        return changed

    def _may_have_changed(self, path: str, published: Mapping[str, FileInfo]) -> bool:
        """Return whether a listed file may differ from the fetched one; True where the store has no times."""
        info = published.get(path.rpartition("/")[2])
        return info is not None and (info.changed is None or self._fetched.get(path) != info)

    def _published_journal(self, run: str) -> bytes:
        return whole_lines(self.remote.read(f"{run}/journal.jsonl") or b"")

    def _fetch_result(self, run: str, info: FileInfo, folder: Path) -> None:
        """Fetch a result and, if the store has one, its time, which is part of what MLflow records."""
        content = self.remote.read(f"{run}/result.json") or b""
        try:
            json.loads(content)
        except ValueError:
            return  # incomplete, on a store where that can be: the rest will come
        partial = folder / ".result.json.fetched"
        partial.write_bytes(content)
        if info.changed is not None:
            os.utime(partial, ns=(info.changed, info.changed))
        os.replace(partial, folder / "result.json")


def _in_parallel(action: Callable[[str], Output], names: Iterable[str]) -> list[Output]:
    with ThreadPoolExecutor(TRANSFERS_AT_ONCE) as pool:
        return list(pool.map(action, names))


def _run_path(run_id: str) -> str:
    return f"runs/{_checked_name(run_id)}"


def _sweep_path(name: str) -> str:
    return "/".join(["sweeps", *map(_checked_name, name.split("/"))])


def _checked_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):  # it leads nowhere else, and isn't hidden
        raise ValueError(f"a name in the storage must be of letters, digits, '.', '_' and '-', but got '{text}'")
    return text


def _local_journal(folder: Path) -> bytes:
    path = folder / "journal.jsonl"
    return whole_lines(path.read_bytes()) if path.exists() else b""


def _joined_journal(first: bytes, second: bytes) -> bytes:
    """Return `second` if it begins with `first`, otherwise `first` and the metrics of `second` at steps beyond it."""
    if second.startswith(first):
        return second
    steps = [record["step"] for record in map(json.loads, first.splitlines()) if record["kind"] == "metrics"]
    last_step = max(steps, default=-1)
    more = [
        line
        for line in second.splitlines(keepends=True)
        if (record := json.loads(line))["kind"] == "metrics" and record["step"] > last_step
    ]
    return first + b"".join(more)


def _replace_journal(folder: Path, present: bytes, content: bytes) -> bool:
    """Write the journal if its content has changed, and return whether it has."""
    if content == present:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with open_atomically(folder / "journal.jsonl") as file:
        file.write(content)
    return True
