"""An injection that works like `addition` until a file makes it fail, for tests of a sweep's reaction.

`FAULTS` names a folder; a file `next` in it says what happens once to whichever run gets to it, `always` what happens
to every attempt: an exception's name, `hang`, or `diverge`, after a number of forward passes.
"""

import errno
import os
import time
from pathlib import Path

import torch

from isoloop.trainer.accounting import InjectionCost
from isoloop.trainer.model.injection import Injection

FAULTS = "ISOLOOP_TEST_FAULTS"


class Faulty(Injection):
    passes = 0

    def __init__(self, width):
        super().__init__()
        Faulty.passes = 0

    @staticmethod
    def cost(width):
        return InjectionCost(parameters=0)

    def initialise(self, std, generator):
        pass

    def drive(self, e):
        Faulty.passes += 1
        folder = Path(os.environ.get(FAULTS, "/nowhere"))
        for name in ("next", "always"):
            try:
                what, after = (folder / name).read_text().split()
            except FileNotFoundError:
                continue
            if Faulty.passes > int(after):
                if name == "next":
                    (folder / name).unlink()
                go_wrong(what)
        return e

    def inject(self, h, drive):
        return h + drive

    def spectral_radius(self):
        return 1.0


def go_wrong(what):
    if what == "hang":
        time.sleep(1000)
    raise {
        "full": OSError(errno.ENOSPC, "No space left on device"),
        "network": ConnectionError("the network is gone"),
        "memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "bug": TypeError("a bug"),
    }[what]
