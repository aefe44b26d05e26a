"""Calls that create, list, stop and delete tasks: evaluations, exports, publications, records."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lectern.client.problems import unknown_form
from lectern.client.transport import Calls, segment
from lectern.reconnect import OUTAGE_SECONDS, Reconnecting
from lectern_common.run.status import RESTING, RunState
from lectern_common.spec.run_spec import RunSpec

_TASK = "task"


@dataclass(frozen=True)
class TaskStatus:
    """A task as the control plane reports it; `json` is the whole answer.

    Attributes:
        id: the stage with a random suffix.
        run_id: of its run; None if it belongs to none.
        stage: evaluate, export, publish or precompute.
        state: queued, running, succeeded, ...
        reason: a stable word for why it is in this state.
        message: the same in a sentence.
        doing: what is counted, such as "problems".
        done: how many of them are done.
        of: how many there are.
        eta_seconds: until all are done at the present rate; None if that is not known.
        resumes_at: when it goes on by itself, in Unix seconds; None means never.
        result: what the stage returned, only from `task` and `wait_for_task`, once it succeeded.
    """

    id: str
    run_id: str | None
    stage: str
    state: RunState
    reason: str | None
    message: str | None
    doing: str | None
    done: int
    of: int
    eta_seconds: float | None
    resumes_at: float | None
    result: dict[str, Any] | None
    json: dict[str, Any]

    @property
    def rests(self) -> bool:
        """True if no process works on the task and none will start by itself."""
        return self.state in RESTING and self.resumes_at is None

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "TaskStatus":
        """Parses an answer. Raises ControlPlaneUnavailable unless it describes a task."""
        try:
            return cls(
                id=data["id"],
                run_id=data["run_id"],
                stage=data["stage"],
                state=RunState(data["state"]),
                reason=data.get("reason"),
                message=data.get("message"),
                doing=data.get("doing"),
                done=data.get("done") or 0,
                of=data.get("of") or 0,
                eta_seconds=data.get("eta_seconds"),
                resumes_at=data.get("resumes_at"),
                result=data.get("result"),
                json=data,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise unknown_form("a task", error) from None


class TaskCalls(Calls):
    """Creates, lists, stops and deletes tasks."""

    def evaluate_run(
        self, run_id: str, asked: Mapping[str, Any], idempotency_key: str | None = None
    ) -> TaskStatus:
        """Queues an evaluation of a run; returns it.

        Args:
            run_id: the run's id.
            asked: such as {"suites": ["perplexity"]}; see docs/evaluate.md, without `model`.
            idempotency_key: a second call with the same key returns the task of the first; None
                takes a new key.

        Raises:
            NotFound: there is no such run.
            InvalidSpec: a field is wrong.
            InvalidRequest: the key was used before with another request.
        """
        return self._created(f"/runs/{segment(run_id)}/evaluations", asked, idempotency_key)

    def export_run(
        self,
        run_id: str,
        asked: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> TaskStatus:
        """Queues an export of a run's student for other programs; returns it.

        Args:
            run_id: the run's id.
            asked: such as {"format": "gguf"}; see docs/publish.md, without `run`.
            idempotency_key: as in `evaluate_run`.

        Raises:
            NotFound: there is no such run.
            InvalidSpec: a field is wrong.
            InvalidRequest: the key was used before with another request.
        """
        return self._created(f"/runs/{segment(run_id)}/exports", asked or {}, idempotency_key)

    def publish_run(
        self, run_id: str, asked: Mapping[str, Any], idempotency_key: str | None = None
    ) -> TaskStatus:
        """Queues the plan of a model repository of a run's student, or its upload; returns it.

        Args:
            run_id: the run's id.
            asked: such as {"to": "me/coder-small"}; see docs/publish.md, without `run`.
            idempotency_key: as in `evaluate_run`.

        Raises:
            NotFound: there is no such run.
            InvalidSpec: a field is wrong.
            InvalidRequest: the key was used before with another request.
        """
        return self._created(f"/runs/{segment(run_id)}/publications", asked, idempotency_key)

    def record_teacher(
        self,
        spec: RunSpec,
        output: str,
        options: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> TaskStatus:
        """Queues a recording of a spec's teacher over its data; returns it.

        Args:
            spec: its paths are relative to the control plane's roots.
            output: name of the record to make, under the data root.
            options: such as {"eight_bit_hidden": True}; see docs/record.md.
            idempotency_key: as in `evaluate_run`.

        Raises:
            InvalidSpec: a field is wrong.
        """
        body: dict[str, Any] = {"spec": spec.model_dump(mode="json"), "output": output}
        body["options"] = dict(options or {})
        return self._created("/records", body, idempotency_key)

    def tasks(self, run_id: str | None = None, states: Sequence[RunState] = ()) -> list[TaskStatus]:
        """Returns tasks, newest first.

        Args:
            run_id: only those of this run.
            states: only those in one of these states.

        Raises:
            NotFound: there is no such run.
        """
        path = "/tasks" if run_id is None else f"/runs/{segment(run_id)}/tasks"
        params = {"state": [str(state) for state in states]} if states and run_id is None else {}
        pages = self._transport.pages(path, params)
        found = [TaskStatus.of_json(task) for page in pages for task in page["tasks"]]
        return [task for task in found if not states or task.state in states]

    def task(self, task_id: str) -> TaskStatus:
        """Returns one task, with its result once it has succeeded. Raises NotFound."""
        return self._task("GET", f"/tasks/{segment(task_id, _TASK)}")

    def task_log(self, task_id: str, tail: int = 100) -> str:
        """Returns the last `tail` lines of a task's log. Raises NotFound."""
        path = f"/tasks/{segment(task_id, _TASK)}/log"
        return self._transport.ask("GET", path, params={"tail": tail}).text

    def stop_task(self, task_id: str) -> TaskStatus:
        """Asks a task to stop; returns it, possibly still running. What it has done is kept.

        Raises:
            NotFound: there is no such task.
            Conflict: it has succeeded or failed.
        """
        return self._task("POST", f"/tasks/{segment(task_id, _TASK)}/stop")

    def resume_task(self, task_id: str) -> TaskStatus:
        """Queues a task that has stopped, failed or was interrupted; it goes on where it was.

        Raises:
            NotFound: there is no such task.
            Conflict: it is not at rest, or has succeeded.
        """
        return self._task("POST", f"/tasks/{segment(task_id, _TASK)}/resume")

    def delete_task(self, task_id: str) -> None:
        """Deletes a resting task and its folder for good.

        Raises:
            NotFound: there is no such task.
            Conflict: it is not at rest.
        """
        self._transport.ask("DELETE", f"/tasks/{segment(task_id, _TASK)}")

    def wait_for_task(
        self,
        task_id: str,
        *,
        poll_seconds: float = 1.0,
        outage_seconds: float = OUTAGE_SECONDS,
        show: Callable[[TaskStatus], None] = lambda task: None,
    ) -> TaskStatus:
        """Waits until a task rests; returns it with its result.

        Args:
            task_id: its id.
            poll_seconds: time between two questions.
            outage_seconds: how long the control plane may be away in between.
            show: called with each answer.

        Raises:
            NotFound: there is no such task.
            ControlPlaneUnavailable: the control plane is away for longer.
        """
        outlasting = Reconnecting(lambda text: None, outage_seconds)
        while True:
            task = outlasting.ask(partial(self.task, task_id))
            show(task)
            if task.rests:
                return task
            time.sleep(poll_seconds)

    def _created(self, path: str, asked: Mapping[str, Any], key: str | None) -> TaskStatus:
        headers = {"idempotency-key": key or uuid.uuid4().hex}
        return self._task("POST", path, json=dict(asked), headers=headers)

    def _task(self, method: str, path: str, **request: Any) -> TaskStatus:
        return TaskStatus.of_json(self._transport.json(method, path, **request))
