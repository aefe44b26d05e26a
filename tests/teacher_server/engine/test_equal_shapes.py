"""When sequences of one length may be computed together in `independent`."""

import json
from pathlib import Path

import numpy as np
import pytest

from lectern_common.errors import Misconfigured
from lectern_models.loading import load_causal_lm
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.equal_shapes import EqualShapes, trials_tell
from teacher_server.engine.seam import ComputedRows
from teacher_server.engine.transformers import EngineSettings
from tests.support.models import write_tiny_model


def rows(*values: int) -> list[ComputedRows]:
    return [ComputedRows(np.full(8, value, np.uint8).data) for value in values]


def test_a_shape_is_trusted_after_it_came_out_equal_twice() -> None:
    shapes = EqualShapes()
    for _ in range(2):
        assert shapes.known((2, 8)) is None
        shapes.tried((2, 8), rows(1, 2), rows(1, 2))
    assert shapes.known((2, 8)) is True
    assert shapes.known((4, 8)) is None


def test_a_shape_that_once_came_out_different_is_never_trusted() -> None:
    shapes = EqualShapes()
    shapes.tried((2, 8), rows(1, 2), rows(1, 2))
    shapes.tried((2, 8), rows(1, 2), rows(1, 3))
    assert shapes.known((2, 8)) is False


@pytest.mark.parametrize(
    ("architecture", "dtype", "tells"),
    [("qwen2", "float32", True), ("qwen2", "bfloat16", False), ("mixtral", "float32", False)],
)
def test_trials_prove_nothing_in_16_bits_or_with_experts(
    tmp_path: Path, architecture: str, dtype: str, tells: bool
) -> None:
    model = load_causal_lm(write_tiny_model(tmp_path, architecture, dtype=dtype))
    assert trials_tell(model) is tells


def test_a_rotary_embedding_that_depends_on_the_batch_is_refused_in_throughput_mode(
    tmp_path: Path,
) -> None:
    folder = write_tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Misconfigured, match="longrope"):
        transformers_engine.load(str(folder), EngineSettings(mode="throughput", device="cpu"))
    transformers_engine.load(str(folder), EngineSettings(device="cpu"))
