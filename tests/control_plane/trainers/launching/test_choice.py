"""Options that choose the backend are applied, or refused with what to change."""

import argparse
from pathlib import Path

import pytest

from control_plane.trainers.launching.choice import add_launcher_options, launcher_from
from control_plane.trainers.launching.local import LocalLauncher
from control_plane.trainers.launching.seam import Launcher
from control_plane.trainers.launching.slurm.launcher import SlurmLauncher
from lectern_common.errors import Misconfigured
from tests.support.fake_slurm import FakeSlurm


def chosen(*words: str) -> Launcher:
    parser = argparse.ArgumentParser()
    add_launcher_options(parser.add_argument)
    return launcher_from(parser.parse_args(words), ["python"], {}, lambda: None)


def test_trainers_are_processes_of_this_machine_unless_told_otherwise():
    assert isinstance(chosen(), LocalLauncher)


def test_slurms_options_reach_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", FakeSlurm(tmp_path).environment["PATH"])
    words = ("--slurm-partition", "big", "--slurm-signal-seconds", "30")
    launcher = chosen("--launcher", "slurm", *words)
    assert isinstance(launcher, SlurmLauncher)
    assert (launcher._options.partition, launcher._options.signal_seconds) == ("big", 30)
    assert launcher._options.gres == "gpu"


def test_an_option_of_slurm_without_slurm_is_refused():
    with pytest.raises(Misconfigured, match="--slurm-time-limit needs --launcher slurm"):
        chosen("--slurm-time-limit", "8:00:00")


def test_a_machine_without_slurms_commands_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match="there is no sbatch on PATH"):
        chosen("--launcher", "slurm")


@pytest.mark.parametrize("seconds", ["0", "65536", "soon"])
def test_seconds_that_sbatch_would_refuse_are_refused(seconds: str):
    with pytest.raises(SystemExit):
        chosen("--launcher", "slurm", "--slurm-signal-seconds", seconds)
