"""The client of a teacher server, as the training loop sees it.

Legend: N asked positions, V the student's vocabulary, D the teacher's hidden size.
"""

import itertools
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lectern_common.callers import read_token_file
from lectern_common.errors import InvalidRequest, TeacherError
from lectern_common.roots import Roots
from lectern_common.spec.sections import TeacherSpec
from lectern_common.teacher.address import checked_address
from lectern_common.teacher.channel import TeacherChannel
from lectern_common.teacher.identity import TeacherIdentity, require_same_teacher
from lectern_common.teacher.replicas import TeacherReplicas
from lectern_common.teacher.secrets import SecretFiles, read_secrets
from lectern_common.teacher.tls import ClientTls
from lectern_common.wire.formats import PROTOCOL_VERSION, Representation, Widths, pack_mask
from lectern_models.logits.output_head import OutputHead
from protos import teacher_pb2
from student_trainer.data.lists import every_position_logits, last_position_logits
from student_trainer.stop import Stop
from student_trainer.targets import TeacherTargets, joined
from student_trainer.teacher.calls import TeacherCalls
from student_trainer.teacher.head import (
    assemble_head,
    cached_head_path,
    read_cached_head,
    write_cached_head,
)
from student_trainer.teacher.reply import (
    Expected,
    assemble,
    to_targets,
)

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class RemoteTeacher:
    """Scores through a teacher server. Use as a context manager, or call close().

    Args:
        calls: the calls to the teacher's servers; closed with this object.
        run_id: the run that the teacher's work is charged to.
        vocab_size: V, the student's; rows cover ids 0 .. V - 1.
        device: where to put the output head.
        cache_root: where output heads are kept.
    """

    def __init__(
        self,
        calls: TeacherCalls,
        *,
        run_id: str,
        vocab_size: int,
        device: torch.device,
        cache_root: Path,
    ) -> None:
        self._calls = calls
        self._run_id = run_id
        self._vocab_size = vocab_size
        self._device = device
        self._cache_root = cache_root
        self._model: teacher_pb2.Model | None = None
        self._head: OutputHead | None = None
        self._lock = threading.Lock()
        self._head_lock = threading.Lock()  # Held during the fetch: the head crosses the wire once.
        self._received_bytes = 0
        self._received_positions = 0
        self._request_numbers = itertools.count()

    def __enter__(self) -> "RemoteTeacher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels the calls in flight and closes the connections."""
        self._calls.close()

    def cancel(self) -> None:
        """Ends the calls in flight and all later ones with StopRequested; cannot be undone."""
        self._calls.cancel()

    def away_seconds(self) -> float:
        """Returns how long no server could be reached so far, in seconds, over all outages."""
        return self._calls.away_seconds

    def take_received(self) -> tuple[int, int]:
        """Returns (bytes, positions) of the LogitsForBatch replies since the last call.

        Counts the messages of complete answers only, without the head and the requests.
        """
        with self._lock:
            taken = self._received_bytes, self._received_positions
            self._received_bytes = self._received_positions = 0
        return taken

    @property
    def address(self) -> str:
        """Where its servers are."""
        return self._calls.address

    @property
    def model(self) -> teacher_pb2.Model:
        """The teacher's description. Raises ValueError before connect()."""
        if self._model is None:
            raise ValueError("call connect() first")
        return self._model

    def connect(self, expected: TeacherIdentity | None = None) -> teacher_pb2.Model:
        """Returns the teacher's description, waiting for it within the outage budget.

        Args:
            expected: the teacher that the run was accepted with.

        Raises:
            WrongModel: another model answers than expected, or the servers have different ones.
            TeacherError: its fingerprint is invalid.
            LecternError: as TargetsProvider.score.
        """
        model = self._calls.model()
        # Checked because it becomes a file name: see head.py.
        if not _FINGERPRINT.fullmatch(model.fingerprint):
            raise TeacherError(
                f"the teacher at {self._calls.address} sent the fingerprint "
                f"{model.fingerprint[:80]!a}; it must be 64 lower-case hex digits"
            )
        if expected is not None:
            where = f"teacher.address {self._calls.address} serves"
            require_same_teacher(TeacherIdentity.of(model), expected, where)
        self._model = model
        return model

    def narrow(self) -> None:
        """Asks for no more ids than the teacher has: the student's others get no answer.

        To be called between connect() and the first answer.
        """
        self._vocab_size = min(self._vocab_size, self.model.logit_width)

    def tokenizer_map(self) -> dict[str, int]:
        """Returns the teacher's token-to-id map. Raises LecternError."""
        return self._calls.tokenizer_map()

    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> TeacherTargets:
        """See TargetsProvider; also raises StopRequested after cancel().

        If there are more sequences than the teacher takes at once, sends several requests.
        """
        return self.scored(sequences, positions, representation, temperature, comes_once=False)

    def for_new_texts(self) -> "NewTexts":
        """See AskedOfNewTexts: the server keeps no rows of what it is asked this way."""
        return NewTexts(self)

    def scored(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
        *,
        comes_once: bool,
    ) -> TeacherTargets:
        """Returns what `score` does; `comes_once`: no sequence is asked about again."""
        limit = max(1, self.model.limits.max_sequences)
        if len(sequences) > limit:
            cuts = [slice(first, first + limit) for first in range(0, len(sequences), limit)]
            return joined(
                [
                    self.scored(
                        sequences[cut],
                        positions[cut],
                        representation,
                        temperature,
                        comes_once=comes_once,
                    )
                    for cut in cuts
                ]
            )
        head = self.output_head() if representation.format.needs_head else None
        mask = np.concatenate(positions)
        expected = Expected(
            fingerprint=self.model.fingerprint,
            representation=representation,
            num_rows=int(np.count_nonzero(mask)),
            widths=Widths.of_model(self.model, self._vocab_size),
        )
        whole = bool(mask.all())
        request = teacher_pb2.LogitsForBatchRequest(
            protocol_version=PROTOCOL_VERSION,
            run_id=self._run_id,
            request_id=str(next(self._request_numbers)),
            expected_fingerprint=expected.fingerprint,
            token_ids=np.concatenate(sequences).astype("<u4").tobytes(),
            sequence_lengths=[len(sequence) for sequence in sequences],
            positions=teacher_pb2.POSITIONS_ALL if whole else teacher_pb2.POSITIONS_MASK,
            position_mask=b"" if whole else pack_mask(mask),
            vocab_size=self._vocab_size,
            representation=representation.message(),
            temperature=temperature,
            comes_once=comes_once,
        )

        def ask(channel: TeacherChannel, left: float | None) -> TeacherTargets:
            with self._calls.replies(channel, channel.logits_for_batch, request, left) as replies:
                payload = assemble(replies, expected)
            targets = to_targets(payload, expected, temperature, head)
            with self._lock:
                self._received_bytes += payload.received_bytes
                self._received_positions += expected.num_rows
            return targets

        return self._calls.answered(ask)

    def output_head(self) -> OutputHead:
        """Returns the teacher's head, first V rows, on the device: from the cache, else fetched.

        On the CPU it is float32, so that no projection has to convert it; the products are the
        same. Raises LecternError.
        """
        with self._head_lock:
            if self._head is None:
                self._head = self._placed_head()
            return self._head

    def served_head(self) -> OutputHead:
        """Returns the head, first V rows, on the CPU in the teacher's own dtype.

        From the cache, else fetched. Raises LecternError.
        """
        path = cached_head_path(self._cache_root, self.model.fingerprint, self._vocab_size)
        head = read_cached_head(path)
        if head is None or head.weight_VD.shape != (self._vocab_size, self.model.hidden_size):
            head = self._calls.answered(self._fetch_head)
            write_cached_head(path, head)
        return head

    def _placed_head(self) -> OutputHead:
        head = self.served_head()
        bias = None if head.bias_V is None else head.bias_V.to(self._device)
        return OutputHead(head.weight_VD.to(self._device), bias, head.transform).widened()

    def vocab_size(self) -> int:
        """See TeacherLogitsProvider."""
        return self._vocab_size

    def logits_for_batch(self, input_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See TeacherLogitsProvider; the teacher must offer `dense`."""
        return last_position_logits(self, input_ids)

    def logits_per_position(
        self, input_ids: Sequence[Sequence[int]]
    ) -> list[npt.NDArray[np.float32]]:
        """Returns the logits [S, V] of each sequence, at every position; asks for `dense`."""
        return every_position_logits(self, input_ids)

    def _fetch_head(self, channel: TeacherChannel, left: float | None) -> OutputHead:
        model = self.model
        request = teacher_pb2.GetOutputHeadRequest(
            protocol_version=PROTOCOL_VERSION,
            vocab_size=self._vocab_size,
            expected_fingerprint=model.fingerprint,
        )
        with self._calls.replies(channel, channel.stub.GetOutputHead, request, left) as replies:
            return assemble_head(replies, model, self._vocab_size)


@dataclass(frozen=True)
class NewTexts:
    """A teacher server, asked about texts that never come again."""

    teacher: RemoteTeacher

    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> TeacherTargets:
        """See RemoteTeacher.score."""
        return self.teacher.scored(
            sequences, positions, representation, temperature, comes_once=True
        )


def teacher_of(
    teacher: TeacherSpec,
    roots: Roots,
    *,
    run_id: str,
    vocab_size: int,
    device: torch.device,
    stop: Stop,
    on_outage: Callable[[str | None], None] = lambda _: None,
) -> RemoteTeacher:
    """Returns the client of a spec's teacher server, not yet connected.

    Args:
        teacher: the spec's; it has an address.
        roots: holds its secrets, and keeps output heads.
        run_id: the run that the teacher's work is charged to.
        vocab_size: the student's.
        device: where the targets are used.
        stop: ends every wait.
        on_outage: is told why no server answers, and None once one does again.

    Raises:
        LecternError: a secret cannot be read.
    """
    secrets = read_secrets(roots, SecretFiles.of(teacher))
    calls = TeacherCalls(
        TeacherReplicas(teacher.address, secrets.token, secrets.tls),
        deadline_seconds=teacher.deadline_seconds,
        outage_budget_seconds=teacher.outage_budget_seconds,
        stop=stop,
        on_outage=on_outage,
    )
    return RemoteTeacher(
        calls, run_id=run_id, vocab_size=vocab_size, device=device, cache_root=roots.cache
    )


def connect_teacher(
    address: str,
    vocab_size: int,
    *,
    token_file: Path | None = None,
    tls: ClientTls | None = None,
    device: torch.device | str = "cpu",
    run_id: str = "python",
    deadline_seconds: float = 120.0,
    outage_budget_seconds: float = 60.0,
    cache_root: Path | None = None,
) -> RemoteTeacher:
    """Returns a connected client of a teacher server. Use as a context manager, or call close().

    Args:
        address: host:port; several with commas, or dns:///name:port, are replicas.
        vocab_size: V, the student's; rows cover ids 0 .. V - 1.
        token_file: holds the bearer token; None means the server needs none.
        tls: None means plaintext.
        device: where the targets are used.
        run_id: the run that the teacher's work is charged to.
        deadline_seconds: longest wait for one answer.
        outage_budget_seconds: how long to retry while the teacher cannot be reached.
        cache_root: where output heads are kept; None means cache/ in the home folder.

    Raises:
        InvalidRequest: the address is invalid, or vocab_size is below 1.
        Misconfigured: the token file cannot be read, or has no usable token.
        LecternError: no server answers in time, or as RemoteTeacher.connect says.
    """
    if vocab_size < 1:
        raise InvalidRequest(f"vocab_size is {vocab_size}; it must be >= 1", "vocab_size")
    try:
        checked_address(address)
    except ValueError as error:
        raise InvalidRequest(f"address {address!r} {error}", "address") from None
    token = None if token_file is None else read_token_file(token_file, "token_file")
    calls = TeacherCalls(
        TeacherReplicas(address, token, tls),
        deadline_seconds=deadline_seconds,
        outage_budget_seconds=outage_budget_seconds,
        stop=Stop(),
    )
    teacher = RemoteTeacher(
        calls,
        run_id=run_id,
        vocab_size=vocab_size,
        device=torch.device(device),
        cache_root=Roots.of_home().cache if cache_root is None else cache_root,
    )
    try:
        teacher.connect()
    except BaseException:
        teacher.close()
        raise
    return teacher
