"""Calls that create, list, stop and delete sweeps."""

import uuid
from collections.abc import Mapping
from typing import Any

from lectern.client.problems import unknown_form
from lectern.client.sweeps import SweepStatus, SweepSummary
from lectern.client.transport import CHECKS_SECONDS, Calls, segment

_SWEEP = "sweep"


class SweepCalls(Calls):
    """Creates, lists, stops and deletes sweeps."""

    def create_sweep(
        self, sweep: Mapping[str, Any], idempotency_key: str | None = None
    ) -> SweepStatus:
        """Creates all runs of a sweep, or none; returns it once the control plane has accepted it.

        Args:
            sweep: {"name": ..., "base": ..., "grid": {"optimizer.learning_rate": [1e-3, 1e-4]}},
                as docs/sweeps.md describes it.
            idempotency_key: as in `create_run`.

        Raises:
            InvalidSpec: a field is wrong, such as `grid.optimizer.learning_rate[1]`.
            Overloaded: the queue has no room for all of the runs.
            LecternError: the teacher does not answer, or does not fit the student and the data.
        """
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        body = dict(sweep)
        return self._sweep("POST", "", json=body, headers=headers, timeout=CHECKS_SECONDS)

    def check_sweep(self, sweep: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what `create_sweep` would make, every check, an estimate, and advice.

        Raises:
            InvalidSpec: a field is wrong.
        """
        path = "/sweeps/check"
        return self._transport.json("POST", path, json=dict(sweep), timeout=CHECKS_SECONDS)

    def sweep(self, sweep_id: str) -> SweepStatus:
        """Returns a sweep with the table of its runs. Raises NotFound."""
        return self._sweep("GET", f"/{segment(sweep_id, _SWEEP)}", timeout=CHECKS_SECONDS)

    def sweeps(self) -> list[SweepSummary]:
        """Returns every sweep, newest first."""
        found: list[SweepSummary] = []
        for page in self._transport.pages("/sweeps", {}):
            try:
                found += map(SweepSummary.of_json, page["sweeps"])
            except (KeyError, TypeError) as error:
                raise unknown_form("sweeps", error) from None
        return found

    def stop_sweep(self, sweep_id: str) -> SweepStatus:
        """Asks all runs of a sweep to stop that are active or queued; returns it.

        Raises:
            NotFound: there is no such sweep.
        """
        return self._sweep("POST", f"/{segment(sweep_id, _SWEEP)}/stop", timeout=CHECKS_SECONDS)

    def delete_sweep(self, sweep_id: str) -> None:
        """Deletes the record of a sweep; its runs stay.

        Raises:
            NotFound: there is no such sweep.
            Conflict: one of its runs is active, queued, or would resume by itself.
        """
        self._transport.ask("DELETE", f"/sweeps/{segment(sweep_id, _SWEEP)}")

    def _sweep(self, method: str, path: str, **request: Any) -> SweepStatus:
        data = self._transport.json(method, f"/sweeps{path}", **request)
        try:
            return SweepStatus.of_json(data)
        except (KeyError, TypeError, ValueError) as error:
            raise unknown_form("a sweep", error) from None
