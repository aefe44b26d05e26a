"""Samples for people to read: how student and teacher continue the same prompts.

    samples.jsonl    {"step", "prompt", "student", "teacher"}, one line per prompt and evaluation;
                     "teacher" is null until it has answered, and its later text also holds for the
                     earlier lines of that prompt

Decoding is greedy, so that equal models write the same text. The teacher does not change, so each
trainer process asks it only once: in a thread, one token of all prompts per request. The loop waits
for it only at the last evaluation.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lectern_common.errors import InvalidSpec
from lectern_common.files import fsync
from lectern_common.json_lines import append_json_line, keep_lines_before
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import complete_tokenizer, read_tokenizer_files
from lectern_common.wire.formats import Representation
from lectern_models.continuation import greedy_continuations
from lectern_models.loading import max_positions
from protos import teacher_pb2
from student_trainer.data.select import Data
from student_trainer.generating.generator import written
from student_trainer.generating.prompt import Prompt
from student_trainer.generating.sampling import Sampling
from student_trainer.journal.disk_full import disk_full_as_error
from student_trainer.ranks.sharding import whole_weights
from student_trainer.ranks.world import Ranks
from student_trainer.stop import SLICE_SECONDS, Stop, StopRequested
from student_trainer.student.ends import edges_of
from student_trainer.student.load import LoadedStudent
from student_trainer.student.student import CausalStudent, Student
from student_trainer.targets import TargetsProvider, TopKTargets

Line = dict[str, Any]


@dataclass(frozen=True)
class Prompts:
    """Prompts and their token ids, to be continued by `num_tokens`; an id in `ends` ends a text."""

    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    num_tokens: int
    ends: frozenset[int]
    decode: Callable[[Sequence[int]], str]

    def continued(self, likeliest: Callable[[list[list[int]]], Sequence[int]]) -> list[str]:
        """Returns the continuation of each prompt; `likeliest` as in greedy_continuations."""
        written = greedy_continuations(self.ids, self.num_tokens, likeliest, self.ends)
        return [self.decode(ids) for ids in written]


def encoded_prompts(
    texts: Sequence[str],
    num_tokens: int,
    tokenizer: Path | None,
    *,
    ends: Collection[int],
    vocab_size: int,
    max_tokens: int,
    begins: int | None = None,
) -> Prompts:
    """Returns the prompts of evaluation.prompts as tokens.

    Args:
        texts: prompts.
        num_tokens: to generate for each.
        tokenizer: tokenizer.json of student or data; None means neither has one.
        ends: ids that end a text.
        vocab_size: the student's.
        max_tokens: longest sequence that both student and teacher take.
        begins: id that begins each prompt, unless that spells it already; None means none does.

    Raises:
        InvalidSpec: there is no tokenizer, or a prompt has no tokens, is too long, or has ids that
            the student lacks.
    """
    field = "evaluation.prompts"
    if tokenizer is None:
        why = (
            "needs a tokenizer.json in the student's folder or beside the data; remove the "
            "prompts, or prepare the data with --tokenizer"
        )
        raise InvalidSpec([(field, why)])
    reader, _ = complete_tokenizer(read_tokenizer_files(tokenizer), str(tokenizer))
    encoded = [list(reader.encode(text, add_special_tokens=False).ids) for text in texts]
    for index, ids in enumerate(encoded):
        if not ids:
            raise InvalidSpec([(f"{field}.{index}", "has no tokens")])
        if begins is not None and ids[0] != begins:
            ids.insert(0, begins)
        if max(ids) >= vocab_size:
            why = f"has token {max(ids)}; the student's ids are below {vocab_size}"
            raise InvalidSpec([(f"{field}.{index}", why)])
        if len(ids) + num_tokens > max_tokens:
            why = (
                f"has {len(ids)} tokens; with the {num_tokens} of evaluation.prompt_tokens it "
                f"exceeds the {max_tokens} that both student and teacher take"
            )
            raise InvalidSpec([(f"{field}.{index}", why)])

    def decode(ids: Sequence[int]) -> str:
        return str(reader.decode(list(ids), skip_special_tokens=False))

    return Prompts(list(texts), encoded, num_tokens, frozenset(ends), decode)


class TeacherTexts:
    """The teacher's continuations, generated in a thread that starts at once.

    Args:
        provider: asked for the likeliest token after each sequence.
        prompts: to continue.
    """

    def __init__(self, provider: TargetsProvider, prompts: Prompts) -> None:
        self._provider = provider
        self._prompts = prompts
        self._texts: list[str] | None = None
        self._problem: Exception | None = None
        self._ended = threading.Event()
        thread = threading.Thread(target=self._write, daemon=True, name="teacher-samples")
        thread.start()

    def get(self, wait: Stop | None) -> list[str] | None:
        """Returns the text for each prompt; None means not yet, or never.

        Args:
            wait: waits for the texts, or until this stop is requested; None means no wait.
        """
        while wait is not None and not wait.requested and not self._ended.wait(SLICE_SECONDS):
            pass
        return self._texts

    def take_problem(self) -> str | None:
        """Returns, only once, why there are no texts; None means there are or may still be."""
        problem, self._problem = self._problem, None
        return None if problem is None else f"{problem}" or type(problem).__name__

    def _write(self) -> None:
        try:
            self._texts = self._prompts.continued(self._likeliest)
        except StopRequested:
            pass
        except Exception as error:  # any error is passed on to the loop
            self._problem = error
        finally:
            self._ended.set()

    def _likeliest(self, sequences: list[list[int]]) -> list[int]:
        targets = self._provider.score(
            [np.asarray(ids, np.uint32) for ids in sequences],
            [np.arange(len(ids)) == len(ids) - 1 for ids in sequences],
            Representation("top_k", top_k=1),
            1.0,
        )
        if not isinstance(targets, TopKTargets):
            raise TypeError(f"expected TopKTargets, got {type(targets).__name__}")
        return [int(token) for token in targets.ids_NK[:, 0].tolist()]


class Samples:
    """samples.jsonl of one run. All ranks gather the student's weights; the first writes.

    Args:
        prompts: to continue.
        path: of the file; None means nothing is written.
        teacher: None means the run has no teacher, or another rank asks it.
        stop: ends the student's generation between two tokens, and the wait for the teacher.
        on_event: called if the teacher's texts will not come, with the reason.
        ranks: that train the student together; None means only this process.
    """

    def __init__(
        self,
        prompts: Prompts,
        path: Path | None,
        teacher: TeacherTexts | None,
        stop: Stop,
        on_event: Callable[..., None] = lambda _kind, **_details: None,
        ranks: Ranks | None = None,
    ) -> None:
        self._prompts = prompts
        self._path = path
        self._teacher = teacher
        self._stop = stop
        self._on_event = on_event
        self._ranks = ranks or Ranks()

    def keep_before(self, step: int) -> None:
        """Drops lines of `step` and later, and an incomplete last line; a resume rewrites them.

        Raises:
            DiskFull: no space; the file is unchanged.
        """
        if self._path is not None:
            with disk_full_as_error(self._path.name):
                keep_lines_before(self._path, step)

    def lines(self, student: Student, *, is_last: bool) -> list[Line]:
        """Returns a line for each prompt; if `is_last`, waits for the teacher.

        On other ranks than the first, which writes alone, returns none.

        Raises:
            StopRequested: a stop was requested.
            Diverged: the student's logits are not finite.
        """
        if not isinstance(student, CausalStudent):
            raise TypeError(f"only a CausalStudent writes samples; got {type(student).__name__}")
        with whole_weights(student), student.precision(), self._ranks.together():
            ours = self._written(student) if self._ranks.is_first else []
        theirs = (
            None if self._teacher is None else self._teacher.get(self._stop if is_last else None)
        )
        return [
            {
                "prompt": self._prompts.texts[index],
                "student": text,
                "teacher": None if theirs is None else theirs[index],
            }
            for index, text in enumerate(ours)
        ]

    def write(self, step: int, lines: Sequence[Line]) -> None:
        """Appends the lines and fsyncs the file. Raises DiskFull."""
        if self._path is None:
            return
        problem = None if self._teacher is None else self._teacher.take_problem()
        if problem is not None:
            self._on_event("left_out", metric="the teacher's samples", message=problem)
        with disk_full_as_error("samples.jsonl"):
            for line in lines:
                append_json_line(self._path, {"step": step, **line})
            fsync(self._path)

    def _written(self, student: CausalStudent) -> list[str]:
        texts = written(
            student.model,
            [Prompt(ids) for ids in self._prompts.ids],
            Sampling(max_new_tokens=self._prompts.num_tokens),
            ends=self._prompts.ends,
            stop=self._stop,
        )
        in_order = sorted(texts, key=lambda text: text.index)
        return [self._prompts.decode(text.ids) for text in in_order]


_UNLIMITED = 1 << 30


def checked_prompts(
    spec: RunSpec, loaded: LoadedStudent, data: Data, model: teacher_pb2.Model | None
) -> Prompts | None:
    """Returns the prompts of evaluation.* as tokens; None if there are none.

    Args:
        spec: the run's.
        loaded: the student; its tokenizer is used, else that of the data.
        data: the run's; a prompt begins as its documents or rows do, and ends where they teach it.
        model: the teacher's description of itself; None means the run has no teacher.

    Raises:
        InvalidSpec: as encoded_prompts says.
    """
    evaluation = spec.evaluation
    if not evaluation.prompts:
        return None
    folders = [loaded.folder] if data.folder is None else [loaded.folder, data.folder]
    paths = [folder / TOKENIZER_NAME for folder in folders]
    path = next((path for path in paths if path.exists()), None)
    manifest, files = data.manifest, {} if path is None else read_tokenizer_files(path)
    limits = [max_positions(loaded.student.model)]
    if model is not None:
        limits.append(model.limits.max_sequence_tokens)
    return encoded_prompts(
        evaluation.prompts,
        evaluation.prompt_tokens or 0,
        path,
        ends=edges_of(loaded.student.model, loaded.folder, data.folder, files).ends,
        begins=None if manifest is None else manifest.bos_token_id,
        vocab_size=min([loaded.student.vocab_size, *([model.logit_width] if model else [])]),
        max_tokens=min((limit for limit in limits if limit), default=_UNLIMITED),
    )
