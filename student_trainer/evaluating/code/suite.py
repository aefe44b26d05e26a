"""The suite `code`: answers to problems are generated, run in a sandbox, and counted.

pass@k is the unbiased estimator of Chen et al. (2021): with c of n samples right, the share of the
draws of k samples that have a right one, 1 - C(n - c, k) / C(n, k), as a mean over problems. A
problem of which a sample could not be judged is left out, and counted.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from lectern_common.errors import InvalidRequest, InvalidSpec, LecternError
from lectern_common.roots import Roots
from lectern_common.spec.suites import CodeOptions
from lectern_common.stages.evaluate import EvaluateRequest
from lectern_common.stages.status import Report
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import read_tokenizer_files
from student_trainer.evaluating.code.problems import (
    Problem,
    identity,
    read_problems,
    stop_texts,
    until_stop,
)
from student_trainer.evaluating.kept import Entry, Kept
from student_trainer.evaluating.sandbox.judging import Judge
from student_trainer.evaluating.sandbox.limits import Limits, Outcome, Verdict
from student_trainer.evaluating.subject import Subject
from student_trainer.evaluating.words import TextTokenizer
from student_trainer.generating.generator import Written, written
from student_trainer.generating.prompt import Prompt
from student_trainer.generating.sampling import Sampling
from student_trainer.seeds import Key, uniforms
from student_trainer.stop import Stop, StopRequested
from student_trainer.student.ends import edges_of

# Tokens at the end of an answer in which a text that ends it is looked for: one is at most 64
# characters long, and a character at most 4 tokens.
_TAIL_TOKENS = 260


@dataclass(frozen=True)
class Writer:
    """What writes the answers.

    Attributes:
        model: it.
        tokenizer: its own.
        ends: ids that end its answers.
        max_positions: its longest sequence; None means no limit.
    """

    model: PreTrainedModel
    tokenizer: TextTokenizer
    ends: frozenset[int]
    max_positions: int | None

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: TextTokenizer, max_positions: int | None
    ) -> "Writer":
        files = read_tokenizer_files(tokenizer.folder / TOKENIZER_NAME)
        ends = edges_of(model, tokenizer.folder, None, files).ends
        return cls(model, tokenizer, frozenset(ends), max_positions)


@dataclass(frozen=True)
class Answering:
    """A sample of a problem: what is continued for it."""

    problem: str
    sample: int
    prompt: Prompt


def evaluate_code(
    asked: EvaluateRequest, roots: Roots, subject: Subject, work: Path, stop: Stop, report: Report
) -> dict[str, Any]:
    """Returns pass@k of a model, and how the programs ended.

    Raises:
        Misconfigured: there is no sandbox, or a package is missing.
        LecternError: nothing could be judged.
        StopRequested: a stop was requested; problems that are judged are kept in `work`.
    """
    if subject.model is None:
        raise InvalidRequest("needs the model itself; a server never generates", "model")
    problems = read_problems(asked.code, roots)
    writer = Writer.of(subject.model, subject.tokenizer(), subject.max_positions)
    of = {
        "problems": identity(problems),
        "model": subject.facts,
        "code": asked.code.model_dump(mode="json"),
        "seed": asked.seed,
        "batch": asked.batch_sequences,
    }
    kept = Kept(work / "code.jsonl", of)
    with opened_judge(asked.code) as judge:
        measured = CodeRun(asked.code, asked.seed, asked.batch_sequences, problems, judge)
        return measured.score(writer, kept, stop, report)


def opened_judge(options: CodeOptions) -> Judge:
    """Returns the judge that the options describe. Raises Misconfigured if there is none here."""
    limits = Limits(seconds=options.seconds, memory_bytes=options.memory_mib << 20)
    return Judge(limits, sandboxed=options.sandbox)


@dataclass(frozen=True)
class CodeRun:
    """Problems, and how answers to them are written and judged."""

    options: CodeOptions
    seed: int
    batch_sequences: int
    problems: Sequence[Problem]
    judge: Judge

    def score(self, writer: Writer, kept: Kept, stop: Stop, report: Report) -> dict[str, Any]:
        """Returns what evaluate_code returns; what `kept` has is not done again."""
        # What could not be judged then, perhaps can now.
        not_judged = Outcome.NOT_JUDGED.value
        kept.entries = [entry for entry in kept.entries if entry["outcome"] != not_judged]
        there = {(entry["problem"], entry["sample"]) for entry in kept.entries}
        by_name = {problem.task_id: problem for problem in self.problems}
        prompts = list(self._prompts(writer))
        total = len(prompts)
        report("answers of code", len(there), total)
        waiting: list[tuple[Entry, Future[Verdict]]] = []
        for first in range(0, total, self.batch_sequences):
            # Always the same batches, so that what is computed again comes out equal.
            batch = prompts[first : first + self.batch_sequences]
            if all((one.problem, one.sample) in there for one in batch):
                continue
            try:
                answers = self._answers(writer, batch, stop)
            except StopRequested:
                self._keep(kept, [one for one in waiting if one[1].done()])
                raise
            self._keep(kept, waiting)
            report("answers of code", len(kept.entries), total)
            for one, answer in zip(batch, answers, strict=True):
                if (one.problem, one.sample) not in there:
                    waiting.append(self._submitted(by_name[one.problem], one, answer, writer))
        self._keep(kept, waiting)
        report("answers of code", len(kept.entries), total)
        return self._result(kept.entries)

    def require_fit(self, writer: Writer) -> None:
        """Raises InvalidSpec unless the model can take every prompt and its answer."""
        for _ in self._prompts(writer):
            pass

    def _prompts(self, writer: Writer) -> Iterator[Answering]:
        """Yields what to continue: all samples of a problem, then those of the next."""
        begins = writer.tokenizer.prompt_begins
        for problem in self.problems:
            if self.options.mode == "chat":
                ids = writer.tokenizer.chat_prompt(problem.message)
            else:
                ids = writer.tokenizer.ids(problem.prompt)
                if ids[: len(begins)] != begins:
                    ids = [*begins, *ids]
            if not ids:
                raise InvalidRequest(f"the prompt of {problem.task_id} has no token", "code")
            needed = len(ids) + self.options.max_new_tokens
            if writer.max_positions is not None and needed > writer.max_positions:
                why = (
                    f"is {self.options.max_new_tokens}, and the prompt of {problem.task_id} has "
                    f"{len(ids)} tokens, but the model takes {writer.max_positions} in all; lower "
                    "it"
                )
                raise InvalidSpec([("code.max_new_tokens", why)])
            for sample in range(self.options.samples):
                numbers = partial(answer_uniforms, self.seed, problem.task_id, sample)
                yield Answering(problem.task_id, sample, Prompt(ids, numbers))

    def _answers(self, writer: Writer, batch: Sequence[Answering], stop: Stop) -> list[Written]:
        """Returns the answers in the batch's order."""
        stops = stop_texts(self.options)

        def is_over(_: int, ids: list[int]) -> bool:
            text = writer.tokenizer.text(ids[-_TAIL_TOKENS:])
            return any(one in text for one in stops)

        answers = written(
            writer.model,
            [one.prompt for one in batch],
            Sampling(
                temperature=self.options.temperature,
                top_p=self.options.top_p,
                max_new_tokens=self.options.max_new_tokens,
            ),
            ends=writer.ends,
            stop=stop,
            is_over=is_over if stops else None,
        )
        return sorted(answers, key=lambda answer: answer.index)

    def _submitted(
        self, problem: Problem, asked: Answering, answer: Written, writer: Writer
    ) -> tuple[Entry, "Future[Verdict]"]:
        text = writer.tokenizer.continuation(asked.prompt.ids, answer.ids)
        text = until_stop(text, self.options)
        is_chat = self.options.mode == "chat"
        program = problem.program_of_answer(text) if is_chat else problem.program(text)
        entry = {
            "problem": problem.task_id,
            "sample": asked.sample,
            "answer": text,
            "tokens": len(answer.ids),
            "is_cut": answer.is_cut,
        }
        return entry, self.judge.judging(program)

    def _keep(self, kept: Kept, waiting: list[tuple[Entry, "Future[Verdict]"]]) -> None:
        """Waits for verdicts and keeps them; the list is empty afterwards."""
        done = [(entry, future.result()) for entry, future in waiting]
        waiting.clear()
        if done:
            kept.add(
                *(
                    {**entry, "outcome": verdict.outcome.value, "reason": verdict.reason}
                    for entry, verdict in done
                )
            )

    def _result(self, entries: Sequence[Entry]) -> dict[str, Any]:
        outcomes = Counter(entry["outcome"] for entry in entries)
        scored = scores_of(entries, self.options)
        if not scored.num_judged:
            reasons = Counter(entry["reason"] for entry in entries).most_common(1)
            raise LecternError(
                f"no answer could be judged ({reasons[0][0] if reasons else 'there is none'}), so "
                "there is no score; mend that and start the same evaluation again"
            )
        return {
            "pass_at_k": scored.pass_at_k,
            "standard_error": scored.standard_error,
            "problems": len(self.problems),
            "not_judged": len(self.problems) - scored.num_judged,
            "samples": self.options.samples,
            "outcomes": {one.value: outcomes.get(one.value, 0) for one in Outcome},
            "cut_answers": sum(bool(entry["is_cut"]) for entry in entries),
            "mode": self.options.mode,
            "problems_sha256": identity(self.problems),
            "sandbox": self.options.sandbox,
            "interpreter": self.judge.interpreter,
        }


def answer_uniforms(seed: int, problem: str, sample: int, count: int) -> npt.NDArray[np.float64]:
    """Returns the numbers in [0, 1) that choose the first `count` tokens of a sampled answer."""
    name = int.from_bytes(hashlib.sha256(problem.encode()).digest()[:8], "little")
    return uniforms(Key.ANSWERS, (seed, name, sample), count)


@dataclass(frozen=True)
class Scores:
    """pass@k by k, with standard errors over problems, and over how many problems."""

    pass_at_k: dict[str, float]
    standard_error: dict[str, float | None]
    num_judged: int


def scores_of(entries: Sequence[Mapping[str, Any]], options: CodeOptions) -> Scores:
    """Returns the scores over problems all of whose samples were judged."""
    right: Counter[str] = Counter()
    judged: Counter[str] = Counter()
    for entry in entries:
        judged[entry["problem"]] += entry["outcome"] != Outcome.NOT_JUDGED.value
        right[entry["problem"]] += entry["outcome"] == Outcome.PASSED.value
    whole = [name for name, count in judged.items() if count == options.samples]
    means: dict[str, float] = {}
    errors: dict[str, float | None] = {}
    for k in options.k if whole else ():
        values = [pass_at_k(options.samples, right[name], k) for name in whole]
        mean = math.fsum(values) / len(values)
        means[str(k)] = mean
        squares = math.fsum((value - mean) ** 2 for value in values)
        n = len(values)
        errors[str(k)] = math.sqrt(squares / (n - 1) / n) if n > 1 else None
    return Scores(means, errors, len(whole))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns the probability that k of n samples, c of which are right, have a right one.

    Raises:
        ValueError: not 0 <= c <= n, or not 1 <= k <= n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples with {c} right")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
