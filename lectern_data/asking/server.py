"""A server with the OpenAI interface, through the `openai` library."""

import math
import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from lectern_common.errors import InvalidRequest, Misconfigured, NotFound, Unauthenticated
from lectern_common.words import inert_name
from lectern_data.asking.answer import Answer, Failure, RefusedError, TryAgainError, judged, shown
from lectern_data.asking.requests import PATHS, Request
from lectern_data.asking.settings import GenerateSettings, Way

if TYPE_CHECKING:
    from openai import APIStatusError

KEY_VARIABLE = "OPENAI_API_KEY"
_CONNECT_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 300.0
# Statuses after which another try may get an answer; others of 500 and above are failures too.
_FAILURES: dict[int, Failure] = {
    **dict.fromkeys((408, 409, 425), "failed"),
    **dict.fromkeys((429, 503, 529), "busy"),
    502: "away",
}


class NotOfferedError(Exception):
    """The server has no such path."""


class Server:
    """Asks one server; use it as an asynchronous context manager.

    It neither retries nor follows redirects. A proxy that the environment names is for servers on
    other machines.

    Raises:
        Misconfigured: `openai` is not installed.
    """

    def __init__(self, settings: GenerateSettings) -> None:
        try:
            import httpx2
            import openai
        except ModuleNotFoundError:
            raise Misconfigured(
                "asking a server needs `openai`, which is not installed: pip install "
                "'lectern[openai]'"
            ) from None
        self._library, self._http = openai, httpx2
        self._timeout_seconds = settings.timeout_seconds
        self.url = settings.base_url
        self._model = settings.model
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url,
            api_key=os.environ.get(KEY_VARIABLE) or "none",
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=openai.Timeout(settings.timeout_seconds, connect=_CONNECT_SECONDS),
                follow_redirects=False,
                trust_env=not settings.is_local,
            ),
        )

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def ask(self, request: Request) -> Answer:
        """Returns the answer to one request, made once.

        Raises:
            RefusedError: this request gets no answer.
            TryAgainError: the same request may get one later.
            NotOfferedError: the server does not know the path.
            Unauthenticated: it asks for another key.
            NotFound: it has no such model.
            InvalidRequest: it is at another address.
        """
        library = self._library
        try:
            body = await self._client.post(PATHS[request.way], cast_to=object, body=request.body)
        except library.APITimeoutError:
            why = f"{self.url} did not answer within {self._timeout_seconds:g} s"
            raise TryAgainError(f"{why} (--timeout-seconds)") from None
        except library.APIConnectionError as error:
            cause = error.__cause__ or error
            why = inert_name(str(cause) or type(cause).__name__)
            # One that breaks off may be this request's fault, if the server dies of it.
            is_unreached = isinstance(cause, self._http.ConnectError)
            why = f"cannot reach {self.url}: {why}"
            raise TryAgainError(why, "unreached" if is_unreached else "failed") from None
        except library.APIStatusError as error:
            raise self._of_status(error, request.way) from None
        except (library.APIError, ValueError):  # a body that is not the JSON that it says it is
            raise TryAgainError(f"the reply of {self.url} is not JSON") from None
        return judged(body, request.way)

    def _of_status(self, error: "APIStatusError", way: Way) -> Exception:
        status, said = error.status_code, shown(error.body)
        if status in (401, 403):
            what = "is not accepted" if os.environ.get(KEY_VARIABLE) else "is missing"
            return Unauthenticated(
                f"{self.url} answers {status}: the key {what}; set {KEY_VARIABLE} in the "
                "environment"
            )
        if 300 <= status < 400:
            place = inert_name(error.response.headers.get("location", "another address"))
            return InvalidRequest(f"{self.url} redirects to {place}; set --from to it", "from")
        if status == 404 and _names_model(error.body, self._model):
            return NotFound(
                f"{self.url} has no model {inert_name(self._model)}: {said}; set --model to the "
                "name under which it serves the model"
            )
        if status in (404, 405, 501):
            return NotOfferedError(f"{self.url}{PATHS[way]} answers {status}: {said}")
        if status in _FAILURES or status >= 500:
            wait = _retry_after(error.response.headers)
            why = f"{self.url} answers {status}: {said}"
            return TryAgainError(why, _FAILURES.get(status, "failed"), wait)
        return RefusedError(f"the server answers {status}: {said}")


def _names_model(body: object, model: str) -> bool:
    """Returns whether what a server says is about the model: it may also have no such path."""
    said = shown(body).lower()
    return "model" in said and ("not" in said or model.lower() in said)


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:  # none, or a date
        return 0.0
    return min(max(0.0, seconds), _LONGEST_WAIT_SECONDS) if math.isfinite(seconds) else 0.0
