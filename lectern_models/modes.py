"""Evaluation mode for a while: dropout off, then every module's mode as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the block, dropout is off; afterwards each module has its own mode again.

    `module.train(True)` would put all of them into one mode, also those that were not.
    """
    modes = [(one, one.training) for one in module.modules()]
    module.train(False)
    try:
        yield
    finally:
        for one, was_training in modes:
            one.training = was_training
