"""Calls that create, list, change and delete runs."""

import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from lectern.client.answers import Pruned, RunStatus
from lectern.client.problems import unknown_form
from lectern.client.transport import CHECKS_SECONDS, Calls, segment
from lectern.reconnect import OUTAGE_SECONDS, Reconnecting
from lectern_common.run.status import RunState
from lectern_common.spec.run_spec import RunSpec

_HISTORY_PAGE = 200
# It also reads every byte of a checkpoint before it accepts a fork.
FORK_SECONDS = 3600.0


class RunCalls(Calls):
    """Creates, lists, changes and deletes runs."""

    def create_run(self, spec: RunSpec, idempotency_key: str | None = None) -> RunStatus:
        """Creates a run; returns it once the control plane has accepted it.

        Args:
            spec: its paths are relative to the control plane's roots.
            idempotency_key: a second call with the same key returns the run of the first; None
                takes a new key.

        Raises:
            InvalidSpec: a field is wrong, or names something that does not exist.
            InvalidRequest: the key was used before with another spec.
            LecternError: the teacher does not answer, or does not fit the student and the data.
        """
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        body = spec.model_dump(mode="json")
        return RunStatus.of_json(
            self._transport.json(
                "POST", "/runs", json=body, headers=headers, timeout=CHECKS_SECONDS
            )
        )

    def list_runs(
        self,
        states: Sequence[RunState] = (),
        *,
        group: str | None = None,
        tags: Sequence[str] = (),
    ) -> list[RunStatus]:
        """Returns every run, newest first.

        Args:
            states: only those in one of these states.
            group: only those of this group.
            tags: only those with all of these tags.
        """
        params: dict[str, Any] = {
            "state": [str(state) for state in states],
            "tag": list(tags),
            **({} if group is None else {"group": group}),
        }
        pages = self._transport.pages("/runs", params)
        return [RunStatus.of_json(run) for page in pages for run in page["runs"]]

    def get_run(self, run_id: str) -> RunStatus:
        """Returns one run; its `json` also has the spec and the history.

        Raises:
            NotFound: there is no such run; the message names similar ids.
        """
        return RunStatus.of_json(self._transport.json("GET", f"/runs/{segment(run_id)}"))

    def set_labels(self, run_id: str, labels: dict[str, Any]) -> RunStatus:
        """Changes what says something about a run and nothing about its training; returns it.

        Args:
            run_id: the run's id, in any state.
            labels: such as {"priority": 5, "group": None, "tags": ["a"], "notes": "..."}; those
                that are absent stay, and None clears the group.

        Raises:
            NotFound: there is no such run.
            InvalidSpec: a field is no label, or has an invalid value.
        """
        return RunStatus.of_json(
            self._transport.json("PATCH", f"/runs/{segment(run_id)}", json=labels)
        )

    def history(self, run_id: str, limit: int | None = None) -> list[dict[str, Any]]:
        """Returns what happened to a run, oldest first: changes of state and trainer's events.

        Each entry has at, kind, message, and of a change of state also state, wanted, attempt,
        reason and `by`, which says who asked for it.

        Args:
            run_id: the run's id.
            limit: only the last so many; None means all.

        Raises:
            NotFound: there is no such run.
        """
        params: dict[str, str | int] = {"limit": _HISTORY_PAGE}
        entries: list[dict[str, Any]] = []
        while True:
            page = self._transport.json("GET", f"/runs/{segment(run_id)}/history", params=params)
            entries += page["entries"]
            if page["next_cursor"] is None or (limit is not None and len(entries) >= limit):
                return entries[:limit][::-1]
            params["cursor"] = page["next_cursor"]

    def stop_run(self, run_id: str, at: Literal["now", "checkpoint"] = "now") -> RunStatus:
        """Asks a run to write a checkpoint and stop; returns it, possibly still running.

        Args:
            run_id: the run's id.
            at: `checkpoint` lets it go on to the next checkpoint that is due anyway; without one
                before its last step, it succeeds. A run without a trainer stops at once.

        Raises:
            NotFound: there is no such run.
            Conflict: it has succeeded or failed.
        """
        return RunStatus.of_json(
            self._transport.json("POST", f"/runs/{segment(run_id)}/stop", json={"at": at})
        )

    def fork_run(
        self,
        run_id: str,
        changes: dict[str, Any] | None = None,
        *,
        checkpoint: int | None = None,
        idempotency_key: str | None = None,
    ) -> RunStatus:
        """Creates a run that goes on from a checkpoint of another one; returns the new run.

        Args:
            run_id: the run to fork, in any state.
            changes: what differs in its spec, such as {"optimizer": {"learning_rate": 1e-4}};
                anything but the student. The name becomes the run's with `-fork` unless set.
            checkpoint: its step; None means the newest.
            idempotency_key: as in `create_run`.

        Raises:
            NotFound: there is no such run.
            Conflict: it has no checkpoint, or has just deleted this one.
            InvalidRequest: it has no checkpoint of this step.
            InvalidSpec: a fork may not change these fields, or not to these values.
            CorruptData: the checkpoint is damaged.
            DiskFull: there is no space for the fork.
            LecternError: the teacher does not answer, or does not fit.
        """
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        body = {"checkpoint": checkpoint, "changes": changes or {}}
        path = f"/runs/{segment(run_id)}/fork"
        return RunStatus.of_json(
            self._transport.json("POST", path, json=body, headers=headers, timeout=FORK_SECONDS)
        )

    def resume_run(self, run_id: str, changes: dict[str, Any] | None = None) -> RunStatus:
        """Resumes a resting run from its newest checkpoint; returns it.

        Args:
            run_id: the run's id.
            changes: what to change in its spec, such as {"schedule": {"steps": 2000}}; see
                `run_spec.RESUME_MAY_CHANGE`.

        Raises:
            NotFound: there is no such run.
            Conflict: it is not at rest, or has nothing left to do.
            InvalidSpec: a resume may not change these fields, or not to these values.
        """
        path = f"/runs/{segment(run_id)}/resume"
        return RunStatus.of_json(
            self._transport.json("POST", path, json=changes or {}, timeout=CHECKS_SECONDS)
        )

    def delete_run(self, run_id: str) -> None:
        """Deletes a resting run and its folder for good.

        Raises:
            NotFound: there is no such run.
            Conflict: it is not at rest, or would resume by itself.
        """
        self._transport.ask("DELETE", f"/runs/{segment(run_id)}", timeout=CHECKS_SECONDS)

    def prune_runs(
        self,
        *,
        states: Sequence[RunState] = (),
        older_than_days: float | None = None,
        keep_newest: int | None = None,
        group: str | None = None,
        dry_run: bool = True,
    ) -> Pruned:
        """Deletes the resting runs that meet every given criterion; by default only lists them.

        Runs that resume by themselves are never deleted.

        Args:
            states: only runs in these; none means all in which a run rests.
            older_than_days: only runs that have been in their state for longer.
            keep_newest: so many of the newest in these states and this group stay, at any age.
            group: only runs of this group.
            dry_run: deletes nothing.

        Raises:
            InvalidRequest: there is no criterion, or one is wrong.
        """
        body = {
            "states": [str(state) for state in states],
            "older_than_days": older_than_days,
            "keep_newest": keep_newest,
            "group": group,
            "dry_run": dry_run,
        }
        return Pruned.of_json(
            self._transport.json("POST", "/runs/prune", json=body, timeout=CHECKS_SECONDS)
        )

    def adopt_runs(self, run_ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Makes runs of folders that the control plane does not know, as after a restored backup.

        Args:
            run_ids: names of folders in its runs root; None means all, but not those of runs that
                were deleted.

        Returns:
            {"adopted": [{"run_id", "name", "state", "step"}], "refused": [{"run_id", "detail"}]}.
        """
        body = {"run_ids": None if run_ids is None else [*run_ids]}
        answer = self._transport.json("POST", "/runs/adopt", json=body, timeout=CHECKS_SECONDS)
        if not all(isinstance(answer.get(key), list) for key in ("adopted", "refused")):
            raise unknown_form("adopted runs", KeyError("adopted"))
        return answer

    def wait(
        self,
        run_ids: Sequence[str],
        *,
        timeout_seconds: float | None = None,
        poll_seconds: float = 0.5,
        on_poll: Callable[[list[RunStatus]], None] = lambda runs: None,
        outage_seconds: float = OUTAGE_SECONDS,
        say: Callable[[str], None] = lambda text: None,
    ) -> list[RunStatus]:
        """Waits until all runs are at rest; returns them.

        Args:
            run_ids: the runs' ids.
            timeout_seconds: for all of them together; None means no limit.
            poll_seconds: pause between two polls.
            on_poll: called with the runs after each poll.
            outage_seconds: how long the control plane may be away in between, such as during its
                restart.
            say: is told when it is away, and when it is back.

        Raises:
            ControlPlaneUnavailable: it does not answer the first poll, or is away for longer.
            NotFound: one of them does not exist.
            TimeoutError: they are not all at rest after `timeout_seconds`.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        if timeout_seconds is not None:
            outage_seconds = min(outage_seconds, timeout_seconds)
        outlasting = Reconnecting(say, outage_seconds)
        while True:
            runs = [outlasting.ask(partial(self.get_run, run_id)) for run_id in run_ids]
            on_poll(runs)
            if all(run.rests for run in runs):
                return runs
            if deadline is not None and time.monotonic() > deadline:
                states = ", ".join(f"{run.id} {run.state}" for run in runs if not run.rests)
                raise TimeoutError(f"not at rest after {timeout_seconds:g} s: {states}")
            time.sleep(poll_seconds)
