"""The wheel holds one package, and lives beside others that are called as our folders are."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from isoloop import __version__
from isoloop.fitting import simulate_table

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("sweeps", "trainer", "fitting")
OTHER = "WHO = '{name}'\n"


def run(*command, cwd):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dummy_wheel(folder, name, packages):
    """A distribution `name` of top-level `packages`, each with a module called as one of ours is."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    files = {
        f"{package}/{module}.py": OTHER.format(name=name) for package in packages for module in ("__init__", "loop")
    }
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return path


def build_wheel(source, folder):
    run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source,
        cwd=folder,
    )  # fmt: skip
    (path,) = folder.glob("isoloop-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_a_wheel_holds_one_package_and_all_that_is_in_it(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in inside} == {"isoloop"}
    ours = [path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    expected = {f"isoloop/{path.as_posix()}" for path in ours if path.suffix != ".pyc"}
    assert inside == expected | {"isoloop/__init__.py"}


def test_a_wheel_made_from_the_source_archive_is_the_same(wheel, tmp_path):
    build = f"from hatchling.build import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    archive = tmp_path / run(sys.executable, "-c", build, cwd=ROOT).split()[-1]
    again = build_wheel(archive, tmp_path)
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


def test_it_works_beside_packages_called_sweeps_trainer_and_fitting(wheel, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python, isoloop = (tmp_path / "venv" / "bin" / name for name in ("python", "isoloop"))
    places = sysconfig.get_paths(vars={"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")})
    # What isoloop depends on is taken from here; the editable isoloop isn't, for that is a .pth file of its own.
    (Path(places["purelib"]) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    before = dummy_wheel(tmp_path, "tracker", ("sweeps", "fitting"))
    after = dummy_wheel(tmp_path, "speech", ("trainer", "fitting"))
    for path in (before, wheel, after):
        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", path, cwd=tmp_path)

    assert run(isoloop, "--version", cwd=tmp_path).strip() == f"isoloop {__version__}"
    table = simulate_table(seed=0, budgets=(1e18, 2e18, 4e18), mean_recurrences=(1, 2, 4, 8), recurrences=())
    table.to_csv(tmp_path / "runs.csv", index=False)
    assert "training law" in run(isoloop, "fit", "runs.csv", "--draws", "20", cwd=tmp_path)
    code = "import fitting, isoloop, sweeps, trainer.loop; print(sweeps.WHO, trainer.loop.WHO, isoloop.__file__)"
    tracker, speech, place = run(python, "-c", code, cwd=tmp_path).split()
    assert (tracker, speech) == ("tracker", "speech")
    assert Path(place).is_relative_to(tmp_path)
