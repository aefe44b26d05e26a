"""In float32, `hidden` and `dense` give the same losses."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.models import write_tiny_model
from tests.support.servers import teacher_process
from tests.support.training.runs import VOCAB_SIZE, Home, curve, trained

STEPS = 200


@pytest.mark.long
def test_the_loss_curve_of_hidden_equals_that_of_dense(tmp_path: Path) -> None:
    """Within 1e-5 at the first step and 1e-3 at all 200; top_k of the whole vocabulary too."""
    home = Home(tmp_path)
    model = write_tiny_model(tmp_path / "teacher", vocab_size=VOCAB_SIZE, hidden=32, seed=1)
    curves = {}
    with teacher_process(tmp_path, "--model", str(model), "--threads", "1") as teacher:
        for kind in ("dense", "hidden", "top_k"):
            folder = home.run(
                teacher={
                    "address": teacher.address,
                    "representation": kind,
                    "top_k": VOCAB_SIZE if kind == "top_k" else None,
                },
                objective={"alpha": 0.2, "temperature": 2},
                schedule={"steps": STEPS, "warmup_steps": 5},
                evaluation={"every_steps": STEPS},
                checkpoint={"every_steps": STEPS},
            )
            assert trained(home, folder) == 0
            curves[kind] = np.array([curve(folder, "loss/total"), curve(folder, "loss/kd")])
    dense = curves["dense"]
    assert dense.shape == (2, STEPS)
    assert dense[1, -1] < dense[1, 0]
    for kind in ("hidden", "top_k"):
        difference = np.abs(curves[kind] - dense)
        assert difference[:, 0].max() <= 1e-5
        assert difference.max() <= 1e-3
