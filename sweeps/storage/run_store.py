"""Run folders and corpora <-> a folder on any file system, for workers and drivers that share no disk.

    <storage>/runs/<run id>/    spec.json  journal.jsonl  model/  result.json   as in the run's own folder
                                checkpoints/<step>/state.pt   checkpoints/<step>.json (it is whole; its files' sizes)
                                pulse (a step was made)  lease.json (who trains it)  stop (somebody asks it to)
    <storage>/corpora/<fingerprint>/...   corpora/<fingerprint>.json (it is whole; its files' sizes)

A process may end anywhere: what a reader trusts is written last. A checkpoint counts once its marker is there, which
comes after the journal that leads up to it; a run is finished once its result is there, which comes after all else.
A journal only ever grows for whoever has read of it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from isoloop.sweeps.storage.filesystem import Entry, Remote, StorageError, is_name
from isoloop.sweeps.storage.lease import STALE_SECONDS, Lease
from isoloop.trainer.files import open_atomically, owner_in_turn

KEEP_CHECKPOINTS = 2
AT_ONCE = 8
FEW_RUNS = 32

Told = Callable[[str], None]


class Storage:
    """What the sweep keeps at `uri`: a folder, or any URI that pyarrow or fsspec can open.

    One object is for one process; it remembers what it has sent and seen, so that nothing moves twice.

    Raises:
        ValueError: no file system is known for the URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.remote = uri, Remote(uri)
        self.name = self.remote.name
        self._sent: dict[str, tuple[int, int]] = {}
        self._seen: dict[str, Entry] = {}
        self._pulses: dict[str, str] = {}

    def check(self) -> None:
        """Write a small file, read it back and remove it.

        Raises:
            ValueError: that can't be done.
        """
        path = f"check-{os.getpid()}"
        try:
            self.remote.write(path, b"isoloop")
            if self.remote.read(path) != b"isoloop":
                raise StorageError(f"the storage {self.name} must give back what was written, but doesn't")
            self.remote.remove(path)
        except StorageError as error:
            raise ValueError(f"{error}; look at the URI, the credentials and what they allow") from error

    def push_run(self, folder: Path, run_id: str) -> None:
        """Bring what is new in a run's local folder into the storage; a published result is final, and ends it.

        Raises:
            FileNotFoundError: the run replaced a file meanwhile; call again.
            StorageError: the storage can't be used now; call again.
        """
        run = _run(run_id)
        there = self.remote.list(run)
        if "result.json" not in there:
            finished = (folder / "result.json").exists()  # looked for first: what else there is by now is all of it
            saved = _saved(folder)
            marker = None if finished or not saved else self._push_checkpoint(saved[-1], run, there)
            self._push_journal(folder, run, there)
            if "spec.json" not in there and (folder / "spec.json").exists():
                self.remote.upload(folder / "spec.json", f"{run}/spec.json")
            if marker is not None:
                step = saved[-1].name
                self.remote.write(f"{run}/checkpoints/{step}.json", json.dumps(marker).encode())
                there |= {f"checkpoints/{step}.json": Entry(0, None), f"checkpoints/{step}/": Entry(0, None)}
            if not finished:
                self._drop_checkpoints(run, there, keep=KEEP_CHECKPOINTS)
                return
            for path in sorted(path for path in (folder / "model").rglob("*") if path.is_file()):
                self._push_changed(path, f"{run}/{path.relative_to(folder).as_posix()}")
            self.remote.upload(folder / "result.json", f"{run}/result.json")
        self._drop_checkpoints(run, there, keep=0)

    def pull_run(self, run_id: str, folder: Path) -> bool:
        """Bring a run's local folder up to what is published: a finished run's result, or its newest checkpoint.

        What is newer here stays. The journal becomes the published one, followed by the steps that only this folder's
        has: it goes on where others have read it.

        Returns:
            Whether the run has a result.

        Raises:
            StorageError: the storage can't be used now.
        """
        run = _run(run_id)
        if (folder / "result.json").exists():
            return True
        there = self.remote.list(run)
        finished = "result.json" in there
        if not finished:
            self._pull_checkpoint(folder, run, there)
        if "journal.jsonl" in there:
            journal = folder / "journal.jsonl"
            local = _whole_lines(journal)
            published = _cut(self.remote.read(f"{run}/journal.jsonl") or b"")
            _replace(journal, local, _longer(published, local))
        if finished:
            self._fetch_result(run, there["result.json"], folder)
        return finished

    def fetch_news(self, run_ids: Iterable[str], out: Path) -> list[str]:
        """Bring journals, pulses and results that changed into the driver's `out/runs/<run id>/`.

        A run's result comes after all of its journal; `heartbeat` there is touched when its worker made a step.

        Returns:
            The runs with news.

        Raises:
            StorageError: the storage can't be used now; what has come is there.
        """
        open_runs = [run_id for run_id in run_ids if not (out / "runs" / run_id / "result.json").exists()]
        listed = self._listed(open_runs)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            news = pool.map(lambda run_id: self._fetch(run_id, listed[run_id], out / "runs" / run_id), open_runs)
            return [run_id for run_id, new in zip(open_runs, news, strict=True) if new]

    def push_corpus(self, folder: Path) -> str:
        """Publish a prepared corpus unless it is there, and return its fingerprint.

        Raises:
            StorageError: the storage can't be used now; call again.
        """
        fingerprint = _name(json.loads((folder / "corpus.json").read_text())["fingerprint"])
        marker = f"corpora/{fingerprint}.json"
        if self.remote.read(marker) is None:
            files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
            there = self.remote.list(f"corpora/{fingerprint}")
            missing = [path for path in files if path.name not in there or there[path.name].size != path.stat().st_size]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda path: self.remote.upload(path, f"corpora/{fingerprint}/{path.name}"), missing))
            self.remote.write(marker, json.dumps({path.name: path.stat().st_size for path in files}).encode())
        return fingerprint

    def pull_corpus(self, fingerprint: str, cache: Path, *, waiting: Told = lambda _: None) -> Path:
        """The folder of a published corpus under `cache`, fetched once for all processes of this machine.

        Raises:
            ValueError: there is no such corpus in the storage.
            StorageError: the storage can't be used now; what has come is kept.
        """
        folder = cache / _name(fingerprint)
        if (folder / "corpus.json").exists():
            return folder
        place = cache / "requests" / f"pull-{fingerprint}"
        with owner_in_turn(place, waiting=lambda: waiting("another process fetches this corpus; waiting")):
            if (folder / "corpus.json").exists():
                return folder
            marker = self.remote.read(f"corpora/{fingerprint}.json")
            if marker is None:
                raise ValueError(f"a corpus must be published whole, but {self.name} has no corpus {fingerprint}")
            sizes = {_name(name): size for name, size in json.loads(marker).items()}
            building = place / "building"
            missing = [
                name
                for name, size in sizes.items()
                if not (building / name).exists() or (building / name).stat().st_size != size
            ]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                fetch = partial(self._fetch_shard, fingerprint, building, sizes)
                list(pool.map(fetch, missing))
            os.replace(building, folder)
        return folder

    def lease(self, run_id: str, *, owner: str | None = None, stale_seconds: float = STALE_SECONDS) -> Lease:
        """The lease on a run, not taken yet; sweeps/storage/lease.py says what it is worth."""
        return Lease(self.remote, f"{_run(run_id)}/lease.json", owner=owner, stale_seconds=stale_seconds)

    @contextmanager
    def hold(self, run_id: str, *, owner: str | None = None, stale_seconds: float = STALE_SECONDS) -> Iterator[Lease]:
        """Hold the lease on a run for the block, which must renew it: `sync.Mirror` does all that.

        Raises:
            FolderBusyError: another holds it.
            StorageError: the storage can't be used.
        """
        lease = self.lease(run_id, owner=owner, stale_seconds=stale_seconds)
        lease.acquire()
        try:
            yield lease
        finally:
            lease.release()

    def push_pulse(self, run_id: str, made: int, text: str) -> None:
        """Say that a run's heartbeat is of `made`, nanoseconds on the worker's clock, and holds `text`."""
        self.remote.write(f"{_run(run_id)}/pulse", f"{made}\n{text}".encode())

    def ask_to_stop(self, run_ids: Iterable[str]) -> None:
        """Ask workers of these runs to save their state and end; they look every few seconds."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda run_id: self.remote.write(f"{_run(run_id)}/stop", b"stop"), run_ids))

    def withdraw_stop(self, run_ids: Iterable[str]) -> None:
        """Take such requests back, those of an earlier driver among them."""
        for run_id, files in self._listed(list(run_ids)).items():
            if "stop" in files:
                self.remote.remove(f"{_run(run_id)}/stop")

    def is_asked_to_stop(self, run_id: str) -> bool:
        """Whether somebody asked this run to stop."""
        return self.remote.read(f"{_run(run_id)}/stop") is not None

    def _push_checkpoint(self, saved: Path, run: str, there: Mapping[str, Entry]) -> dict[str, int] | None:
        """Send the files of one checkpoint unless it is published; the marker that it then needs."""
        if f"checkpoints/{saved.name}.json" in there:
            return None
        files = sorted(path for path in saved.rglob("*") if path.is_file())
        if not files:
            raise FileNotFoundError(saved)
        names = {path: path.relative_to(saved).as_posix() for path in files}
        return {
            name: self.remote.upload(path, f"{run}/checkpoints/{saved.name}/{name}") for path, name in names.items()
        }

    def _drop_checkpoints(self, run: str, there: Mapping[str, Entry], *, keep: int) -> None:
        """Remove all but the newest `keep` published checkpoints, and what was left half sent before those."""
        steps = {path.split("/")[1].removesuffix(".json") for path in there if path.startswith("checkpoints/")}
        if not keep:
            if steps:
                self.remote.remove_folder(f"{run}/checkpoints")
            return
        marked = sorted(step for step in steps if f"checkpoints/{step}.json" in there)
        for step in sorted(steps - set(marked[-keep:])):
            if marked and step < marked[-1]:
                self.remote.remove(f"{run}/checkpoints/{step}.json")
                self.remote.remove_folder(f"{run}/checkpoints/{step}")

    def _push_journal(self, folder: Path, run: str, there: Mapping[str, Entry]) -> None:
        """Send the journal if it has grown."""
        content = _whole_lines(folder / "journal.jsonl")
        if len(content) > (there["journal.jsonl"].size if "journal.jsonl" in there else 0):
            self.remote.write(f"{run}/journal.jsonl", content)

    def _push_changed(self, path: Path, target: str) -> None:
        """Send a file that this process hasn't sent as it is."""
        state = path.stat()
        signature = (state.st_size, state.st_mtime_ns)
        if self._sent.get(target) != signature:
            self.remote.upload(path, target)
            self._sent[target] = signature

    def _pull_checkpoint(self, folder: Path, run: str, there: Mapping[str, Entry]) -> None:
        """Fetch the newest published checkpoint that is whole, if it is newer than the newest here."""
        local = [path.name for path in _saved(folder)]
        markers = (path.split("/")[1] for path in there if path.startswith("checkpoints/") and path.count("/") == 1)
        steps = (name.removesuffix(".json") for name in markers if name.endswith(".json"))
        for step in sorted((step for step in steps if step.isdigit()), reverse=True):
            if local and step <= local[-1]:
                return
            sizes = json.loads(self.remote.read(f"{run}/checkpoints/{step}.json") or b"{}")
            paths = {name: f"checkpoints/{step}/{name}" for name in sizes}
            if not sizes or any(p not in there or there[p].size != sizes[name] for name, p in paths.items()):
                continue
            building = folder / "checkpoints" / f".building-{step}"
            shutil.rmtree(building, ignore_errors=True)
            for name, path in paths.items():
                self.remote.download(f"{run}/{path}", building / _inside(name), size=sizes[name])
            os.replace(building, folder / "checkpoints" / step)
            return

    def _fetch_shard(self, fingerprint: str, folder: Path, sizes: Mapping[str, int], name: str) -> None:
        self.remote.download(f"corpora/{fingerprint}/{name}", folder / name, size=sizes[name])

    def _listed(self, run_ids: list[str]) -> dict[str, dict[str, Entry]]:
        """What each run has in the storage: a listing each where they are few, one of all where they are many."""
        if len(run_ids) <= FEW_RUNS:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                return dict(zip(run_ids, pool.map(lambda run_id: self.remote.list(_run(run_id)), run_ids), strict=True))
        found: dict[str, dict[str, Entry]] = {run_id: {} for run_id in run_ids}
        for path, entry in self.remote.list("runs").items():
            run_id, _, rest = path.partition("/")
            if run_id in found:
                found[run_id][rest] = entry
        return found

    def _fetch(self, run_id: str, there: Mapping[str, Entry], folder: Path) -> bool:
        run, news = _run(run_id), False
        if not there:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        if self._changed(f"{run}/journal.jsonl", there):
            journal = folder / "journal.jsonl"
            local = _whole_lines(journal)
            published = _cut(self.remote.read(f"{run}/journal.jsonl") or b"")
            # What stands here has been read up to some byte, so it stays, whatever journal is published.
            news |= _replace(journal, local, _longer(local, published))
            self._seen[f"{run}/journal.jsonl"] = there["journal.jsonl"]
        if self._changed(f"{run}/pulse", there):
            made, _, text = (self.remote.read(f"{run}/pulse") or b"").decode().partition("\n")
            if made != self._pulses.get(run_id):
                (folder / "heartbeat").write_text(text)
                self._pulses[run_id], news = made, True
            self._seen[f"{run}/pulse"] = there["pulse"]
        if "result.json" in there:
            self._fetch_result(run, there["result.json"], folder)
            news = True
        return news

    def _changed(self, path: str, there: Mapping[str, Entry]) -> bool:
        """Whether a listed file may differ from when it was last fetched; True where the store tells no times."""
        entry = there.get(path.rpartition("/")[2])
        return entry is not None and (entry.changed is None or self._seen.get(path) != entry)

    def _fetch_result(self, run: str, entry: Entry, folder: Path) -> None:
        """Fetch a result, with the published one's time where there is one: it is part of what MLflow records."""
        target = folder / "result.json"
        content = self.remote.read(f"{run}/result.json") or b""
        try:
            json.loads(content)
        except ValueError:
            return  # half of it, on a store where that can be: the rest comes
        partial = folder / ".result.json.fetched"
        partial.write_bytes(content)
        if entry.changed is not None:
            os.utime(partial, ns=(entry.changed, entry.changed))
        os.replace(partial, target)


def _run(run_id: str) -> str:
    return f"runs/{_name(run_id)}"


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"a name in the storage must be of letters, digits, '.', '_' and '-', but got '{text}'")
    return text


def _inside(path: str) -> Path:
    for part in path.split("/"):
        _name(part)
    return Path(path)


def _saved(folder: Path) -> list[Path]:
    """Whole checkpoints of a run's local folder, oldest first."""
    return sorted(path for path in (folder / "checkpoints").glob("[0-9]*") if path.is_dir())


def _whole_lines(path: Path) -> bytes:
    return _cut(path.read_bytes()) if path.exists() else b""


def _cut(content: bytes) -> bytes:
    """Without a torn last line."""
    return content[: content.rfind(b"\n") + 1]


def _longer(first: bytes, second: bytes) -> bytes:
    """Journal `first` and the metrics of `second` of steps beyond it; all of `second` where it begins with `first`."""
    if second.startswith(first):
        return second
    steps = [record["step"] for record in map(json.loads, first.splitlines()) if record["kind"] == "metrics"]
    reached = max(steps, default=-1)
    more = [
        line
        for line in second.splitlines(keepends=True)
        if (record := json.loads(line))["kind"] == "metrics" and record["step"] > reached
    ]
    return first + b"".join(more)


def _replace(journal: Path, local: bytes, content: bytes) -> bool:
    """Whether the journal has become another one."""
    if content == local:
        return False
    journal.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(journal) as file:
        file.write(content)
    return True
