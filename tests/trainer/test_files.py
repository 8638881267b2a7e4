"""Folders that one process at a time owns."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from isoloop.trainer.files import FolderBusyError, is_owned, owner_in_turn, sole_owner

OWN = (
    "import sys; from pathlib import Path; from isoloop.trainer.files import sole_owner\n"
    "with sole_owner(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.readline()"
)


@pytest.fixture
def owner(tmp_path):
    """Another process that owns the folder."""
    command = [sys.executable, "-c", OWN, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.communicate()


def test_asking_creates_nothing(tmp_path):
    assert not is_owned(tmp_path / "nowhere")
    assert not is_owned(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with sole_owner(tmp_path):
        assert is_owned(tmp_path)
    assert not is_owned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"lock"}


def test_a_lock_goes_when_its_owner_is_killed(tmp_path, owner):
    assert is_owned(tmp_path)
    with pytest.raises(FolderBusyError, match=f"another is at work in {tmp_path}"), sole_owner(tmp_path):
        raise AssertionError("two owners")
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with sole_owner(tmp_path):
        assert is_owned(tmp_path)


def test_a_lock_goes_with_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="an error"), sole_owner(tmp_path):
        raise RuntimeError("an error")
    assert not is_owned(tmp_path)


def test_a_turn_comes_when_the_owner_has_ended(tmp_path, owner):
    waits = []

    def end_the_other():
        waits.append(True)
        owner.communicate("end\n")

    with owner_in_turn(tmp_path, waiting=end_the_other):
        assert is_owned(tmp_path)
    with owner_in_turn(tmp_path, waiting=lambda: waits.append(False)):
        pass
    assert waits == [True]
    assert not is_owned(tmp_path)


def test_questions_turn_no_owner_away(tmp_path):
    done = threading.Event()

    def ask():
        while not done.wait(0.001):
            is_owned(tmp_path)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(100):
            with sole_owner(tmp_path):
                pass
    finally:
        done.set()
        asking.join()


def test_a_child_does_not_keep_the_lock(tmp_path):
    with sole_owner(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.readline()"], stdin=subprocess.PIPE)
    try:
        assert not is_owned(tmp_path)
        assert os.waitpid(child.pid, os.WNOHANG) == (0, 0)
    finally:
        child.communicate(b"\n")
