"""HTTP to one control plane; whatever it refuses is raised as an error."""

import difflib
import getpass
import re
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import httpx

from lectern.client.problems import mapping_of, problem
from lectern.reconnect import ControlPlaneUnavailable, ServerEvent, events_of
from lectern_common.callers import CONTROL_PLANE_TOKEN, is_loopback, token_in
from lectern_common.errors import InvalidRequest, LecternError, NotFound, Unauthenticated
from lectern_common.roots import Roots
from lectern_common.spec.run_spec import NAME_PATTERN

PAGE_SIZE = 100
# The server hashes the student's weights and asks the teacher before it accepts a run.
CHECKS_SECONDS = 300.0
_CONNECT_TRIES = 3
_MAX_NAMED = 3
_NAMED = ("runs", "sweeps")  # what is found by an id that begins with its name
_WHERE_IT_LIES = (
    "the right one lies in secrets/control-plane under the control plane's home; give that file as "
    "--token-file or in LECTERN_TOKEN_FILE, or the token itself in LECTERN_TOKEN"
)


class Transport:
    """The connections to one control plane.

    Args:
        url: such as http://127.0.0.1:8080.
        token: bearer token; None means the one that a control plane on this machine has made. ""
            sends none.
        timeout_seconds: for each answer, unless the request says otherwise.
        transport: replaces the network; None means the network.

    Raises:
        InvalidRequest: the URL does not begin with http:// or https://.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        timeout_seconds: float,
        transport: httpx.BaseTransport | None,
    ) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise InvalidRequest(f"{url!r} does not begin with http:// or https://", "url")
        if token is None:
            token = _own_token(self.url)
        self.http = httpx.Client(
            base_url=self.url,
            headers={
                "user-agent": _user_agent(),
                **({"authorization": f"Bearer {token}"} if token else {}),
            },
            timeout=timeout_seconds,
            transport=transport,
            trust_env=False,
        )

    def json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """Returns the JSON object of a successful response. Raises as `ask` does."""
        data = mapping_of(self.ask(method, path, **request))
        if data is None:
            raise ControlPlaneUnavailable(f"{self.url} is not a Lectern control plane")
        return data

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Returns a successful response. Retries only if no connection was made, so that no
        request is sent twice."""
        for attempt in range(_CONNECT_TRIES):
            try:
                response = self.http.request(method, path, **request)
                break
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if attempt == _CONNECT_TRIES - 1:
                    raise ControlPlaneUnavailable(
                        f"no control plane at {self.url} ({error}); start one with `lectern up`, "
                        "or set --url or LECTERN_URL"
                    ) from None
                time.sleep(0.2)
            except httpx.HTTPError as error:
                what = str(error) or type(error).__name__
                raise ControlPlaneUnavailable(f"{self.url} did not answer: {what}") from None
        if response.is_success:
            return response
        raise self._refusal(response, path)

    def pages(self, path: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields each page of a list, following `next_cursor`."""
        asked = {"limit": PAGE_SIZE, **params}
        while True:
            page = self.json("GET", path, params=asked)
            yield page
            cursor = page.get("next_cursor")
            if cursor is None:
                return
            asked["cursor"] = cursor

    def events(self, path: str, params: dict[str, str | int]) -> Generator[ServerEvent]:
        """Yields the events of a stream until it ends."""
        try:
            with self.http.stream("GET", path, params=params) as response:
                if not response.is_success:
                    response.read()
                    raise self._refusal(response, path)
                yield from events_of(response.iter_lines())
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise ControlPlaneUnavailable(f"no stream from {self.url}: {what}") from None

    def _refusal(self, response: httpx.Response, path: str) -> LecternError:
        """Returns the error that a refused request raises."""
        refusal = problem(response)
        if response.status_code == 401:
            return Unauthenticated(f"{refusal}: {_WHERE_IT_LIES}")
        kind, _, rest = path.strip("/").partition("/")
        if isinstance(refusal, NotFound) and rest and kind in _NAMED:
            return NotFound(f"{refusal}{_did_you_mean(self, kind, rest.split('/')[0])}")
        return refusal


class Calls:
    """Calls to one control plane; each part of `Client` is one of these, over one transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport


def segment(name: str, what: str = "run") -> str:
    """Returns the id of a run or sweep as one URL path segment, or raises InvalidRequest."""
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise InvalidRequest(
            f"{name!r} is not a {what} id; `lectern {what}s list` shows them", what
        )
    return name


def _user_agent() -> str:
    """Returns "lectern/0.3.0 (ann@box)", which the history of a run shows beside a change."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    who = re.sub(r"[^\w.@-]", "?", f"{user}@{socket.gethostname()}", flags=re.ASCII)
    return f"lectern/{version('lectern')} ({who})"


def _own_token(url: str) -> str | None:
    """Returns the token that a control plane on this machine has made; None if there is none.

    It is sent to this machine only: whoever got it could steer the runs here.
    """
    try:
        if not is_loopback(httpx.URL(url).host):
            return None
        return token_in(Roots.of_home().secrets / CONTROL_PLANE_TOKEN) or None
    except (ValueError, httpx.InvalidURL):
        return None


def _did_you_mean(transport: Transport, kind: str, wanted: str) -> str:
    """Returns the end of the message about a missing run or sweep: similar ids, or "".

    An id is a name with a random suffix; a name without one matches its newest ids.
    """
    try:
        pages = transport.pages(f"/{kind}", {})
        found = [(one["id"], one["name"]) for page in pages for one in page[kind]]
    except (LecternError, KeyError, TypeError):
        return ""  # it is missing either way
    like = [one_id for one_id, name in found if name == wanted]
    like = like or difflib.get_close_matches(wanted, [one_id for one_id, _ in found])
    return f"; did you mean {' or '.join(like[:_MAX_NAMED])}?" if like else ""
