"""One call of `generate`: which answers are missing, asking for them, and what came of it."""

from collections import Counter
from collections.abc import Callable, Iterator

from lectern_common.errors import Conflict, InvalidRequest, TeacherUnavailable
from lectern_common.words import counted, inert_name
from lectern_data.asking.answer import Answer, RefusedError, TryAgainError
from lectern_data.asking.first import REMEDY, first_answer
from lectern_data.asking.journal import Journal
from lectern_data.asking.pool import MAX_TRIES, Asking
from lectern_data.asking.preparation import Preparation
from lectern_data.asking.prompts import Prompt, Prompts
from lectern_data.asking.requests import Request, Requests
from lectern_data.asking.server import NotOfferedError, Server
from lectern_data.asking.settings import GenerateSettings, Way
from lectern_data.read.unusable import UnusableError

# If none of the first requests gets an answer, it is not the prompts.
MAX_REFUSED_FIRST = 20


class Call:
    """Asks for the answers that a journal lacks.

    Args:
        settings: of whom, and how many.
        prompts: what to ask.
        journal: gets each answer as soon as it is there.
        requests: makes requests of prompts.
        on_progress: called with (answers and refusals so far, requests in all).
        say: called with one sentence about each event that a person should know of.

    Attributes:
        asked: requests that got a reply, in this call.
        tokens: of these, as far as the server says.
        failed: requests that failed MAX_TRIES times, by their last reason.
        retries: how often a request was made again.
    """

    def __init__(
        self,
        settings: GenerateSettings,
        prompts: Prompts,
        journal: Journal,
        requests: Requests,
        on_progress: Callable[[int, int], None],
        say: Callable[[str], None],
    ) -> None:
        self.asked = self.tokens = self.retries = 0
        self.failed = Counter[str]()
        self._settings = settings
        self._prompts = prompts
        self._journal = journal
        self._requests = requests
        self._on_progress = on_progress
        self._say = say
        self._total = len(prompts) * settings.samples
        self._done = self._total - sum(1 for _ in self._missing())
        self._has_answers = len(journal) > 0
        # Until there is an answer: if all are refused, another call asks them again.
        self._refused_first: list[tuple[Request, str]] = []
        self._models = {settings.model}

    async def ask_all(self, preparation: Preparation) -> Way:
        """Returns how prompts travelled, once every request got an answer or will get none.

        Raises:
            InvalidRequest: the server refuses all of them, or does not take such requests.
            TeacherUnavailable: it was away for too long, or too many requests failed.
            LecternError: see Server.ask.
        """
        self._on_progress(self._done, self._total)
        async with Server(self._settings) as server:
            asking = Asking(server.ask, self._settings.outage_seconds, self._say)
            try:
                way = await self._way(asking, preparation)
                preparation.require_ready(self._prompts, way)
                await asking.every(
                    self._todo(way), self._settings.concurrency, self._take, self._take_none
                )
            except NotOfferedError as error:
                raise InvalidRequest(f"{error}; {REMEDY}", "from") from None
            finally:
                self.retries = asking.retries
        self._require_few_failed()
        self._require_some()
        return way

    async def _way(self, asking: Asking, preparation: Preparation) -> Way:
        """Returns how prompts travel: as set, as before, or as the first prompt shows."""
        ways = preparation.ways(takes_text=self._prompts.content.takes_text)
        before = self._journal.way
        if before in ways:
            return before
        if before is not None and len(self._journal):
            raise Conflict(
                f"answers are kept here to prompts that were sent with --send {before}; set that "
                "to continue, choose another --output, or --force to begin anew"
            )
        prompt = next(self._prompts.read(self._prompts.documents[:1]))
        way, request, answer = ways[0], None, None
        if len(ways) > 1:
            way, request, answer = await first_answer(
                asking, lambda way: self._requests.of(prompt, 0, way), ways, self._say
            )
        self._journal.choose(way)
        if request is not None and answer is not None:
            self._take(request, answer)
        return way

    def _missing(self) -> Iterator[tuple[str, int]]:
        """Yields (prompt, sample) of every answer that the journal lacks."""
        for document in self._prompts.documents:
            for sample in range(self._settings.samples):
                if (document.sha256, sample) not in self._journal:
                    yield document.sha256, sample

    def _todo(self, way: Way) -> Iterator[Request]:
        """Yields the requests for them, the samples of a prompt together."""
        wanted: dict[str, list[int]] = {}
        for key, sample in self._missing():
            wanted.setdefault(key, []).append(sample)
        documents = [entry for entry in self._prompts.documents if entry.sha256 in wanted]
        for prompt in self._prompts.read(documents):
            for sample in wanted[prompt.key]:
                request = self._request(prompt, sample, way)
                if request is not None:
                    yield request

    def _request(self, prompt: Prompt, sample: int, way: Way) -> Request | None:
        try:
            return self._requests.of(prompt, sample, way)
        except UnusableError as error:  # the template fails on it
            self._take_none(Request(prompt.key, sample, way, {}), RefusedError(str(error)))
            return None

    def _take(self, request: Request, answer: Answer) -> None:
        self._has_answers = True
        for refused, why in self._refused_first:
            self._journal.add_refusal(refused, why)
        self._refused_first.clear()
        self._journal.add(request, answer)
        self._note_model(answer.model)
        self.tokens += answer.tokens or 0
        self._advance()

    def _take_none(self, request: Request, error: RefusedError | TryAgainError) -> None:
        if isinstance(error, TryAgainError):
            self.failed[str(error)] += 1
            return
        if self._has_answers:
            self._journal.add_refusal(request, str(error))
        else:
            self._refused_first.append((request, str(error)))
            if len(self._refused_first) >= MAX_REFUSED_FIRST:
                raise InvalidRequest(self._all_refused())
        self._advance()

    def _advance(self) -> None:
        self.asked += 1
        self._done += 1
        self._on_progress(self._done, self._total)

    def _note_model(self, name: str | None) -> None:
        """Says it once if the server answers for a model of another name."""
        known = (name or self._settings.model).partition("@")[0]
        if known not in self._models:
            self._models.add(known)
            self._say(f"the server says that the answers are of {inert_name(known)}")

    def _require_few_failed(self) -> None:
        count = self.failed.total()
        if count > self._settings.max_fault_fraction * self._total:
            why = self.failed.most_common(1)[0][0]
            raise TeacherUnavailable(
                f"{count:,} of {counted(self._total, 'request')} failed {MAX_TRIES} times each, "
                f"more than --max-fault-fraction {self._settings.max_fault_fraction:g} allows "
                f"({why}); see to the server, and run the same command again"
            )

    def _require_some(self) -> None:
        """Raises InvalidRequest if there is no answer at all."""
        if self._refused_first:
            raise InvalidRequest(self._all_refused())

    def _all_refused(self) -> str:
        reasons = Counter(why for _, why in self._refused_first)
        [(why, count)] = reasons.most_common(1)
        first = len(self._refused_first)
        which = "the only request" if first == 1 else f"each of the first {first} requests"
        more = "" if count == first else f", {count} of them as this one"
        return f"no answer to {which}{more}: {why}"
