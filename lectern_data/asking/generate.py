"""Makes a dataset of a model's own answers, from any server with the OpenAI interface. No torch.

    generate()                                                            settings.py
      1. finds, checks and hashes every prompt, each once                 prompts.py
      2. opens the answers that an earlier call has left                  journal.py
      3. decides with the first prompt how prompts travel                 first.py
      4. asks for all answers that are missing, many at once              requests.py, pool.py,
                                                                          server.py, answer.py
      5. writes them, in the order of the prompts, as rows for prepare    answers_file.py
      6. prepares the dataset from that file                              ../prepare.py

Each answer is on disk as soon as it is there, so after a kill at any time the same call asks only
for the others; nor is it lost while some are missing. A request and its seed depend only on the
prompt, the sample and the settings, not on what else is asked.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lectern_common.errors import InvalidRequest, LecternError
from lectern_common.words import counted
from lectern_data.asking.answers_file import (
    Written,
    note_datasets,
    own_datasets,
    require_own,
    write_answers,
)
from lectern_data.asking.call import Call
from lectern_data.asking.journal import Journal
from lectern_data.asking.preparation import Preparation
from lectern_data.asking.prompts import found_prompts
from lectern_data.asking.requests import Requests
from lectern_data.asking.settings import GenerateSettings, Way
from lectern_data.prepare import Prepared
from lectern_data.read.documents import LeftOut
from lectern_data.settings import Progress
from lectern_data.write.publish import require_free
from lectern_data.write.work_folder import work_folder


@dataclass(frozen=True)
class Generated:
    """The result of `generate`.

    Attributes:
        written: the answers, and why some are missing.
        prompts: different ones.
        duplicates: rows that ask what another row has asked before.
        left_out: rows that are no prompt.
        way: how prompts travelled.
        asked: requests of this call that got a reply.
        failed: requests that failed MAX_TRIES times, by their last reason.
        retries: how often this call made a request again.
        tokens_per_second: of the answers of this call; None means that the server does not say.
        seconds: of this call.
        prepared: the dataset; None if only the answers were wanted.
    """

    written: Written
    prompts: int
    duplicates: int
    left_out: list[LeftOut]
    way: Way
    asked: int
    failed: dict[str, int]
    retries: int
    tokens_per_second: float | None
    seconds: float
    prepared: Prepared | None


def generate(
    settings: GenerateSettings,
    *,
    on_progress: Progress = lambda stage, done, total: None,
    on_event: Callable[[str], None] = lambda sentence: None,
) -> Generated:
    """Writes the answers, and the dataset if `settings.output` is one; each appears whole.

    While answers are missing, what is there is kept: the same call asks only for those, and
    replaces what it has written.

    Args:
        settings: what to ask, of whom, and how.
        on_progress: called with (stage, done, total); besides those of `prepare` there is "asking"
            (answers).
        on_event: called with one sentence about each event that a person should know of.

    Raises:
        InvalidRequest: no usable prompt, or the server does not take such requests.
        NotFound: an input, the tokenizer or the model does not exist.
        Conflict: the output exists, another process is making it, or answers are kept that were
            asked for with other settings.
        Unauthenticated: the server asks for another key.
        TeacherUnavailable: the server was away for too long, or too many requests failed.
        CorruptData: a file changed while it was read, or is broken.
        Misconfigured: a package that is needed is not installed.
    """
    started = time.monotonic()
    preparation = Preparation(settings)
    with work_folder(settings.answers) as work:
        own = own_datasets(preparation.targets, work.path)
        for target in preparation.targets:
            require_free(target, replace=settings.force or target in own)
        if not settings.force:
            require_own(settings.answers, work.path)
        prompts = found_prompts(settings, on_progress, preparation.arguments)
        preparation.ways(takes_text=prompts.content.takes_text)
        journal = Journal.of(work.path, settings.asked(), begin_anew=settings.force)
        requests = Requests(settings, preparation.tokenizer, work.begun())
        call = Call(settings, prompts, journal, requests, partial(on_progress, "asking"), on_event)
        try:
            way = asyncio.run(call.ask_all(preparation))
        except (LecternError, OSError, KeyboardInterrupt):
            if len(journal):
                on_event(
                    f"answers to {counted(len(journal), 'request')} are kept; the same command "
                    "asks only for the others"
                )
            raise
        asked_seconds = time.monotonic() - started
        written = write_answers(settings, prompts, journal, way, work.path)
        if not written.answers:
            raise InvalidRequest(f"there is no answer to write: {_why_none(written)}")
        prepared = preparation.prepare(
            prompts,
            way,
            work.begun(),
            replace=bool(own),
            on_progress=on_progress,
            on_event=on_event,
        )
        work.is_needed = written.missing > 0
        if work.is_needed:
            note_datasets(preparation.targets, work.path)
            on_event(_kept_despite(written))
    return Generated(
        written,
        len(prompts),
        prompts.duplicates,
        prompts.left_out,
        way,
        call.asked,
        dict(call.failed),
        call.retries,
        call.tokens / asked_seconds if call.tokens else None,
        time.monotonic() - started,
        prepared,
    )


def _kept_despite(written: Written) -> str:
    return (
        f"{counted(written.missing, 'answer')} missing; the same command asks only for those, and "
        "replaces what it has written"
    )


def _why_none(written: Written) -> str:
    reasons = [f"{count:,} times {why}" for why, count in written.refused.most_common(3)]
    if written.cut:
        reasons.append(f"{written.cut:,} were cut; raise --max-tokens, or set --cut keep")
    return "; ".join(reasons)
