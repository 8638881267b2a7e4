"""Copy the Python sources of pinned packages into one folder: the text of this sweep. Run it in the project's .venv.

python results/python/make_corpus.py corpus-python
"""

import importlib.metadata
import shutil
import sys
from pathlib import Path

PACKAGES = (
    "torch",
    "ray",
    "sympy",
    "pandas",
    "scipy",
    "scikit-learn",
    "numpy",
    "SQLAlchemy",
    "matplotlib",
    "networkx",
    "mlflow",
)


def main() -> None:
    """Copy every .py file that the packages' own records list, and say how much there is."""
    target = Path(sys.argv[1])
    for package in PACKAGES:
        distribution = importlib.metadata.distribution(package)
        sources = [path for path in distribution.files or () if path.suffix == ".py" and ".." not in path.parts]
        size = 0
        for path in sources:
            here = target / package / path
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(path.locate()), here)
            size += here.stat().st_size
        print(f"{package} {distribution.version}: {len(sources)} files, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
