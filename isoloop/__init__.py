"""Plan, train, track and fit the scaling laws of looped language models.

`isoloop.trainer` trains one run, `isoloop.fitting` fits laws to tables of runs, `isoloop.sweeps` plans and runs sweeps.
In the repository the three lie at the top; the links beside this file make a checkout importable as it is installed.
"""

__version__ = "0.1.0"
