"""A Python client of the control plane, for `lectern runs`, the demo and your programs.

with Client("http://127.0.0.1:8080") as client:
    run = client.create_run(load_spec(Path("run.yaml")))
    run = client.wait([run.id])[0]
    print(run.state, run.latest.get("loss/val"))
"""

from lectern.client.answers import Alert, DiskStatus, Pruned, RunStatus, TeacherStatus
from lectern.client.client import Client
from lectern.client.problems import problem
from lectern.client.readings import Buckets, MetricsBatch, Sample
from lectern.client.sweeps import SweepGroup, SweepRun, SweepStatus, SweepSummary
from lectern.client.task_calls import TaskStatus
from lectern.reconnect import ControlPlaneUnavailable

__all__ = [
    "Alert",
    "Buckets",
    "Client",
    "ControlPlaneUnavailable",
    "DiskStatus",
    "MetricsBatch",
    "Pruned",
    "RunStatus",
    "Sample",
    "SweepGroup",
    "SweepRun",
    "SweepStatus",
    "SweepSummary",
    "TaskStatus",
    "TeacherStatus",
    "problem",
]
