"""The client itself: all calls to one control plane."""

from typing import Any

import httpx

from lectern.client.answers import Alert, DiskStatus, TeacherStatus
from lectern.client.reading_calls import ReadingCalls
from lectern.client.run_calls import RunCalls
from lectern.client.sweep_calls import SweepCalls
from lectern.client.task_calls import TaskCalls
from lectern.client.transport import Transport


class Client(RunCalls, ReadingCalls, SweepCalls, TaskCalls):
    """A client of one control plane, over REST.

    Every method that calls the server may also raise ControlPlaneUnavailable (no answer, or not
    from a control plane), Unauthenticated (the token is missing or wrong), InvalidRequest (the
    request is malformed) and any other error of `lectern_common.errors` that the server names.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_seconds: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Makes a client that connects at its first call.

        Args:
            url: such as http://127.0.0.1:8080.
            token: bearer token; None means the one in secrets/control-plane under LECTERN_HOME
                (~/.lectern), if the server is on this machine and there is such a file. "" sends
                none.
            timeout_seconds: for each answer; calls that make the server check a run get longer.
            transport: replaces the network; for tests.

        Raises:
            InvalidRequest: the URL does not begin with http:// or https://.
        """
        connected = Transport(url, token, timeout_seconds, transport)
        super().__init__(connected)
        self.url = connected.url

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        self._transport.http.close()

    def teachers(self) -> list[TeacherStatus]:
        """Returns what the control plane knows about each teacher."""
        return [
            TeacherStatus.of_json(entry)
            for entry in self._transport.json("GET", "/teachers")["teachers"]
        ]

    def alerts(self, after: int = 0, limit: int = 100) -> list[Alert]:
        """Returns the last alerts, newest first.

        Args:
            after: only those with a larger `seq`.
            limit: at most so many, up to 1000.
        """
        answer = self._transport.json("GET", "/alerts", params={"after": after, "limit": limit})
        return [Alert.of_json(alert) for alert in answer.get("alerts") or []]

    def test_alert(self) -> dict[str, Any]:
        """Sends a test alert to the control plane's webhook; returns what became of it.

        Returns:
            `receiver`, `delivered`, and `status`, `said` and `error`, which may be None.

        Raises:
            Conflict: no webhook is set.
        """
        return self._transport.json("POST", "/alerts/test")

    def version(self) -> dict[str, Any]:
        """Returns `version`, `python`, `schema_revision` and `started_at` of the control plane.

        Raises:
            NotFound: it is of an earlier release, which does not say.
        """
        return self._transport.json("GET", "/version")

    def disk(self) -> DiskStatus:
        """Returns how full the disk of the run folders is.

        Raises:
            NotFound: the control plane is of a release that does not tell.
        """
        return DiskStatus.of_json(self._transport.json("GET", "/disk"))

    def is_ready(self) -> bool:
        """Returns True if the control plane accepts runs; False also if nothing answers."""
        try:
            return self._transport.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False
