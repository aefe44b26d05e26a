"""Metrics to Weights & Biases, where report_to asks for it; behind the extra `wandb`."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lectern_common.errors import Misconfigured
from student_trainer.metric_sinks import Metrics


class WeightsAndBiases:
    """A run of Weights & Biases with the run's own id, so that a resumed one goes on there.

    Steps that a resume makes again are there already, and are ignored there. The API key is taken
    from the environment alone; with WANDB_MODE=offline lines stay in wandb/ for `wandb sync`.

    Args:
        folder: of the run; lines are kept under wandb/ in it.
        run_id: of the run.
        config: the resolved spec, shown beside the curves.
        init: makes the run there, as wandb.init; called with the first line, in the sink's thread:
            it waits for the network.

    Raises:
        Misconfigured: the package is not installed, or there is no key.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        config: Mapping[str, Any],
        init: Callable[..., Any] | None = None,
    ) -> None:
        self._init = init or _wandb_init()
        self._settings: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT") or "lectern",
            "id": run_id,
            "name": run_id,
            "dir": str(folder),
            "config": dict(config),
            "resume": "allow",
        }
        self._run: Any = None

    def write(self, step: int, metrics: Metrics) -> None:
        if self._run is None:
            self._run = self._init(**self._settings)
        numbers = {name: v for name, v in metrics.items() if isinstance(v, int | float)}
        self._run.log(numbers, step=step)

    def flush(self) -> None: ...

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _wandb_init() -> Callable[..., Any]:
    try:
        import wandb
    except ImportError:
        raise Misconfigured(
            "report_to: wandb needs the package wandb; install lectern[wandb], or remove it from "
            "report_to"
        ) from None
    mode = os.environ.get("WANDB_MODE") or "online"
    if mode in ("online", "shared") and not os.environ.get("WANDB_API_KEY"):
        raise Misconfigured(
            "report_to: wandb needs WANDB_API_KEY in the trainer's environment; set it, or "
            "WANDB_MODE=offline, or remove wandb from report_to"
        )
    # What is not asked for stays here: console, code, packages, the machine's figures and name.
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        host="lectern",
        save_code=False,
        silent=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    return partial(wandb.init, settings=settings)
