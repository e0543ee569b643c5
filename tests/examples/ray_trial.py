"""Two runs of examples/ray_train.py: one that nobody hits, one with a worker killed in the middle.

A script of test_ray: Ray starts processes of its own, whose output and warnings are no test's.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_train.py"


def deadly(folder: Path) -> TrainerCallback:
    """A callback that kills its own worker once; made here, so that it travels by value."""

    class Dies(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            mark = folder / "killed"
            if state.global_step == 5 and args.process_index == 1 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    return Dies()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    main = runpy.run_path(str(EXAMPLE))["main"]
    main(place / "whole")
    main(place / "broken", callbacks=[deadly(place / "broken")])
