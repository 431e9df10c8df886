"""One rank of a training in a process of its own; `launch` in conftest.py runs this file.

It is given the globals ENVIRONMENT (a dict), PLAN (a run as a dict), RESUME, PATCH (code to run
first; it may define the hooks on_sample and on_step) and LOG (the file for errors).
"""

import os
from pathlib import Path

os.environ.update(ENVIRONMENT)  # noqa: F821

from liquidmm.config import from_dict
from liquidmm.errors import LiquidError
from liquidmm.train.config import TrainConfig
from liquidmm.train.trainer import train

exec(PATCH)  # noqa: F821

try:
    hooks = globals()
    config = from_dict(TrainConfig, PLAN, "run.toml")  # noqa: F821
    train(config, hooks.get("on_sample"), on_step=hooks.get("on_step"), resume=RESUME)  # noqa: F821
except LiquidError as error:
    with Path(LOG).open("a") as log:  # noqa: F821
        log.write(f"{error}\n")
    os._exit(1)
# gloo's threads may abort the interpreter's own exit after all is done.
os._exit(0)
