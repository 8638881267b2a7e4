"""The record of the environment in which a run took place."""

import subprocess

import pytest

from isoloop.trainer.run.environment import COMMIT_VARIABLE, environment, source_commit


@pytest.fixture(autouse=True)
def without_variable(monkeypatch):
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_gits(tmp_path):
    """On a branch, detached, with packed references, in a linked worktree; there is none before the first commit."""
    main, linked = tmp_path / "main", tmp_path / "linked"
    main.mkdir()
    assert source_commit(main) is None
    git(main, "init", "--quiet")
    assert source_commit(main) is None
    git(main, "commit", "--quiet", "--allow-empty", "--message", "first")
    assert source_commit(main) == git(main, "rev-parse", "HEAD")
    git(main, "worktree", "add", "--quiet", str(linked), "-b", "a/branch")
    git(linked, "commit", "--quiet", "--allow-empty", "--message", "second")
    assert source_commit(linked) == git(linked, "rev-parse", "HEAD") != source_commit(main)
    git(main, "pack-refs", "--all")
    assert source_commit(main) == git(main, "rev-parse", "HEAD")
    assert source_commit(linked) == git(linked, "rev-parse", "HEAD")
    git(linked, "checkout", "--quiet", "--detach")
    assert source_commit(linked) == git(linked, "rev-parse", "HEAD")


def test_the_commit_of_code_without_a_repository_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(COMMIT_VARIABLE, "abc123")
    assert source_commit(tmp_path) == "abc123"
    assert environment()["commit"] == "abc123"


def test_versions_host_and_device_are_recorded():
    facts = environment("cpu")
    assert facts.keys() == {"isoloop", "python", "torch", "numpy", "commit", "host", "device_name"}
    assert all(facts[name] for name in ("isoloop", "python", "torch", "numpy", "host", "device_name"))
