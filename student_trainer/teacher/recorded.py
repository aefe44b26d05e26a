"""A recorded teacher: answers from a record on disk, as the server gave them when it was made."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lectern_common.errors import CorruptData, Incompatible, InvalidRequest
from lectern_common.teacher.identity import TeacherIdentity, require_same_teacher
from lectern_common.teacher.record.manifest import HEAD_NAME
from lectern_common.teacher.record.reader import PartReader, RecordReader, require_hash
from lectern_common.wire.formats import Representation
from lectern_models.logits.output_head import OutputHead
from protos import teacher_pb2
from student_trainer.data.lists import every_position_logits, last_position_logits
from student_trainer.stop import Stop
from student_trainer.targets import TeacherTargets, TopKTargets, joined
from student_trainer.teacher.head import read_cached_head
from student_trainer.teacher.recorded_rows import RowMeaning, codec_of


class RecordedTeacher:
    """Answers as RemoteTeacher does, without a server. Safe to call from several threads.

    Args:
        folder: of the record.
        vocab_size: V, the student's; rows cover ids 0 .. V - 1.
        device: where to put the output head.
        stop: ends every later answer with StopRequested.

    Raises:
        NotFound: there is no record.
        CorruptData: a file is not what its manifest says.
    """

    def __init__(
        self, folder: Path, *, vocab_size: int, device: torch.device, stop: Stop | None = None
    ) -> None:
        self._record = RecordReader(folder)
        self._vocab_size = vocab_size
        self._device = device
        self._stop = Stop() if stop is None else stop
        self._head: OutputHead | None = None
        self._head_lock = threading.Lock()

    @property
    def model(self) -> teacher_pb2.Model:
        """The teacher's description of itself, as it was when the record was made."""
        return self._record.model

    @property
    def record(self) -> RecordReader:
        return self._record

    def connect(self, expected: TeacherIdentity | None = None) -> teacher_pb2.Model:
        """Returns the teacher's description.

        Args:
            expected: the teacher that the run was accepted with.

        Raises:
            WrongModel: the record is of another one.
        """
        if expected is not None:
            where = f"teacher.record {self._record.folder.name} is of"
            require_same_teacher(TeacherIdentity.of(self.model), expected, where)
        return self.model

    def narrow(self) -> None:
        """Asks for no more ids than the teacher has: the student's others get no answer."""
        self._vocab_size = min(self._vocab_size, self.model.logit_width)

    def tokenizer_map(self) -> dict[str, int]:
        """Returns the teacher's token-to-id map. Raises CorruptData."""
        return self._record.tokenizer_map()

    def vocab_size(self) -> int:
        """See TeacherLogitsProvider."""
        return self._vocab_size

    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> TeacherTargets:
        """See TargetsProvider; reads the recorded answers.

        `representation.seed` chooses among the sets of draws, which are used in turn.

        Raises:
            Incompatible: the record holds another representation, temperature or vocabulary, or
                does not hold a sequence; the message names its first tokens.
            CorruptData: recorded rows are damaged.
            DataUnavailable: they cannot be read.
        """
        self._stop.check()
        part = self._part(representation, temperature)
        self._require_vocabulary(part)
        codec = codec_of(part.part.format, self._meaning(part, temperature))
        found = []
        for ids_S, asked_S in zip(sequences, positions, strict=True):
            if not asked_S.any():
                continue
            rows = part.read(ids_S, asked_S)
            if rows is None:
                raise Incompatible(_missing(self._record, ids_S))
            found.append(_chosen(codec.decode(rows.data, rows.num_rows), rows.asked))
        if not found:
            raise InvalidRequest("no position is requested", "positions")
        targets = joined(found) if len(found) > 1 else found[0]
        if isinstance(targets, TopKTargets) and representation.top_k is not None:
            return smaller_top_k(targets, representation.top_k)
        return targets

    def covers(
        self,
        ids_S: npt.NDArray[np.uint32],
        asked_S: npt.NDArray[np.bool_],
        representation: Representation,
        temperature: float,
    ) -> bool:
        """Returns whether the record holds a sequence's answers, without reading them.

        With draws, whether every set of them does, whatever `representation.seed`.

        Raises:
            Incompatible: it holds another representation or temperature.
        """
        return all(part.has(ids_S, asked_S) for part in self._parts(representation, temperature))

    def output_head(self) -> OutputHead:
        """Returns the teacher's head, first V rows, on the device; see RemoteTeacher.

        Raises:
            CorruptData: the record's head is damaged.
            Incompatible: the record has no head, or fewer rows than V.
        """
        with self._head_lock:
            if self._head is None:
                self._head = self._placed_head()
            return self._head

    def _placed_head(self) -> OutputHead:
        manifest = self._record.manifest
        path = self._record.folder / HEAD_NAME
        if not any(file.path == HEAD_NAME for file in manifest.files):
            raise Incompatible(
                f"the record {self._record.folder.name} has no output head, which goes with "
                "hidden states; change teacher.representation"
            )
        require_hash(self._record.folder, manifest, HEAD_NAME)
        head = read_cached_head(path)
        if head is None:
            raise CorruptData(f"{path} does not hold an output head")
        head = head.sliced(self._vocab_size)
        bias = None if head.bias_V is None else head.bias_V.to(self._device)
        return OutputHead(head.weight_VD.to(self._device), bias, head.transform).widened()

    def logits_for_batch(self, input_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See TeacherLogitsProvider; no record holds `dense`."""
        return last_position_logits(self, input_ids)

    def logits_per_position(
        self, input_ids: Sequence[Sequence[int]]
    ) -> list[npt.NDArray[np.float32]]:
        """See TeacherLogitsProvider; no record holds `dense`."""
        return every_position_logits(self, input_ids)

    def _part(self, asked: Representation, temperature: float) -> PartReader:
        parts = self._parts(asked, temperature)
        return parts[(asked.seed or 0) % len(parts)]

    def _parts(self, asked: Representation, temperature: float) -> list[PartReader]:
        """Returns the sets of draws that are used in turn, or the part with anything else."""
        found = self._record.parts(asked.kind, temperature)
        large_enough = [
            part for part in found if (part.part.format.top_k or 0) >= (asked.top_k or 0)
        ]
        if not large_enough:
            largest = max(part.part.format.top_k or 0 for part in found)
            raise Incompatible(
                f"the record {self._record.folder.name} has the top {largest}, and the run asks "
                f"for {asked.top_k}: set teacher.top_k to at most {largest}, or make another record"
            )
        draws = [part for part in large_enough if part.part.format.num_draws == asked.num_draws]
        if not draws:
            recorded = large_enough[0].part.format.num_draws
            raise Incompatible(
                f"the record {self._record.folder.name} has {recorded} draws a position, and the "
                f"run asks for {asked.num_draws}: set teacher.num_draws {recorded}, or make "
                "another record"
            )
        if asked.kind == "sampled":
            return draws
        return [min(draws, key=lambda part: part.part.format.top_k or 0)]

    def _meaning(self, part: PartReader, temperature: float) -> RowMeaning:
        manifest = self._record.manifest
        needs_head = part.part.format.representation.format.needs_head
        return RowMeaning(
            manifest.vocab_size,
            manifest.hidden_size,
            manifest.hidden_dtype,
            temperature,
            self.output_head() if needs_head else None,
        )

    def _require_vocabulary(self, part: PartReader) -> None:
        recorded = self._record.manifest.vocab_size
        needs_head = part.part.format.representation.format.needs_head
        if self._vocab_size == recorded or (needs_head and self._vocab_size < recorded):
            return
        raise Incompatible(
            f"the record {self._record.folder.name} is over ids 0 to {recorded - 1}, and the "
            f"student has {self._vocab_size}: make another record with this student"
        )


def smaller_top_k(targets: TopKTargets, k: int) -> TopKTargets:
    """Returns the k likeliest of more, with the mass of the others added to the rest."""
    if k >= targets.ids_NK.shape[-1]:
        return targets
    dropped_N = (targets.logits_NK[:, k:] / targets.temperature).logsumexp(-1)
    return replace(
        targets,
        logits_NK=targets.logits_NK[:, :k].contiguous(),
        ids_NK=targets.ids_NK[:, :k].contiguous(),
        log_rest_t_N=torch.logaddexp(targets.log_rest_t_N, dropped_N),
    )


def _chosen(targets: TeacherTargets, asked: npt.NDArray[np.bool_]) -> TeacherTargets:
    """Returns the rows that are asked for, of those recorded."""
    if asked.all():
        return targets
    edges = np.flatnonzero(np.diff(np.concatenate([[False], asked, [False]])))
    return joined([targets.rows(int(a), int(b)) for a, b in edges.reshape(-1, 2)])


def _missing(record: RecordReader, ids_S: npt.NDArray[np.uint32]) -> str:
    contexts = record.manifest.contexts
    first = ", ".join(str(token) for token in ids_S[:8].tolist())
    return (
        f"the record {record.folder.name} does not hold the sequence of {len(ids_S)} tokens that "
        f"begins [{first}{', ...' if len(ids_S) > 8 else ''}]; it was made of {contexts.data_path} "
        f"with data.seq_len {contexts.seq_len}: train on that, or make another record"
    )
