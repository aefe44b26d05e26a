"""A real trainer, forked from the real fork server, trains as one that was started afresh."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from control_plane.trainers.launching.fork_server import ForkServer
from control_plane.trainers.launching.processes import LocalProcesses
from lectern_common.json_lines import read_json_lines
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from tests.control_plane.conftest import spec, wait_for

PATIENCE_SECONDS = 240
MODEL = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def trained(launcher: LocalProcesses, roots: Roots, name: str) -> tuple[str, list[float | None]]:
    """Returns the hash of the exported weights and the losses of a run of three steps."""
    run_spec = spec(name, device={"kind": "cpu"}, schedule={"steps": 3, "warmup_steps": 0})
    folder = RunFolder.create(roots.runs, f"{name}-1", run_spec)
    process = launcher.start(folder, resume=False, environment={"OMP_NUM_THREADS": "1"})
    wait_for(lambda: not launcher.is_alive(process), PATIENCE_SECONDS)
    assert launcher.exit_status(process) == 0, folder.log_path.read_text()
    sha256 = weights_sha256(safetensors_files(folder.path / "export"))
    return sha256, [line.get("loss/ce") for line in read_json_lines(folder.metrics_path)]


@pytest.mark.long
def test_a_forked_trainer_computes_what_a_fresh_one_does(tmp_path: Path) -> None:
    roots = Roots.of_home(tmp_path)
    (roots.models / "tiny").mkdir(parents=True)
    (roots.models / "tiny" / "config.json").write_text(json.dumps(MODEL))
    fresh = trained(LocalProcesses(environment=roots.environment()), roots, "fresh")
    with closing(ForkServer(1)) as server:
        wait_for(server.is_ready, PATIENCE_SECONDS)
        launcher = LocalProcesses(environment=roots.environment(), fork_server=server)
        assert trained(launcher, roots, "forked") == fresh
        assert trained(launcher, roots, "again") == fresh
        assert server.is_ready()
