"""What a trainer inherits, and what it must not."""

import json
import os
import sys

import pytest

from control_plane.trainers.launching.environment import trainer_environment
from control_plane.trainers.launching.processes import LocalProcesses
from lectern_common.run.folder import RunFolder
from tests.control_plane.conftest import spec, wait_for

PRINTS_ITS_ENVIRONMENT = (
    sys.executable,
    "-c",
    "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1] + '/env.json', 'w'))",
)
KEPT = {
    "PATH": "/usr/bin",
    "HOME": "/home/somebody",
    "TMPDIR": "/scratch",
    "LD_LIBRARY_PATH": "/lib",
    "LD_PRELOAD": "",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "CUDA_HOME": "/usr/local/cuda",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "NVIDIA_TF32_OVERRIDE": "0",
    "NCCL_DEBUG": "INFO",
    "HIP_VISIBLE_DEVICES": "0,1",
    "ROCR_VISIBLE_DEVICES": "0,1",
    "HSA_OVERRIDE_GFX_VERSION": "10.3.0",
    "MIOPEN_USER_DB_PATH": "/miopen",
    "RCCL_MSCCL_ENABLE": "0",
    "ROCM_PATH": "/opt/rocm",
    "GPU_MAX_HW_QUEUES": "4",
    "OMP_NUM_THREADS": "3",
    "MKL_DYNAMIC": "FALSE",
    "HF_HOME": "/models/hub",
    "HF_TOKEN": "hub",
    "WANDB_API_KEY": "wandb",
    "http_proxy": "http://proxy:1",
    "HTTPS_PROXY": "http://proxy:1",
    "no_proxy": "localhost",
    "NO_PROXY": "localhost",
    "SSL_CERT_FILE": "/ca.pem",
    "SSL_CERT_DIR": "/ca",
    "REQUESTS_CA_BUNDLE": "/ca.pem",
    "CURL_CA_BUNDLE": "/ca.pem",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "TORCH_HOME": "/torch",
    "TRITON_CACHE_DIR": "/triton",
    "XDG_CACHE_HOME": "/cache",
    "VIRTUAL_ENV": "/venv",
    "PYTHONUSERBASE": "/packages",
    "LECTERN_HOME": "/lectern",
    "LECTERN_RUNS_ROOT": "/lectern/runs",
    "LECTERN_LOCKS": "/locks",
}
LEFT_OUT = {
    "LECTERN_TOKEN": "secret",
    "LECTERN_TOKEN_FILE": "/secret",
    "LECTERN_CONTROL_PLANE_TOKEN": "secret",
    "LECTERN_TEACHER_TOKEN": "secret",
    "LECTERN_URL": "http://127.0.0.1:8080",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "GITHUB_TOKEN": "secret",
    "DATABASE_PASSWORD": "secret",
    "OPENAI_API_KEY": "secret",
    "SSH_AUTH_SOCK": "/agent",
    "path": "lower case is another variable",
    "MY_PATH": "x",
    "PYTHONSTARTUP": "/startup.py",
}


def test_a_trainer_gets_what_it_needs_and_nothing_else():
    kept = trainer_environment({**KEPT, **LEFT_OUT})
    assert kept == {**KEPT, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize("name", [*KEPT, *LEFT_OUT])
def test_a_real_trainer_inherits_only_what_is_named(tmp_path, monkeypatch, name):
    value = {**KEPT, **LEFT_OUT}[name]
    if name in ("PATH", "HOME", "LD_LIBRARY_PATH"):
        value = os.environ.get(name, value)  # the child has to start
    monkeypatch.setenv(name, value)
    folder = RunFolder.create(tmp_path, "steady-1", spec())
    launcher = LocalProcesses(PRINTS_ITS_ENVIRONMENT, {"LECTERN_DATA_ROOT": "/data"})
    process = launcher.start(folder, resume=False, environment={"OMP_NUM_THREADS": "2"})
    wait_for(lambda: launcher.exit_status(process) is not None)
    seen = json.loads((folder.path / "env.json").read_text())
    assert (name in seen) == (name in KEPT)
    assert seen["LECTERN_DATA_ROOT"] == "/data"
    assert seen["OMP_NUM_THREADS"] == "2"
