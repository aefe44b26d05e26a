"""A teacher behind gRPC, as the training loop sees it.

Legend: N asked positions, V the student's vocabulary, D the teacher's hidden size.

gRPC does not retry a stream that broke after its first message, so a request is made again, whole:
to the next server where there are several (`replicas.py`), then for as long as `outage.py` allows.
Every attempt has a deadline. A reply that was damaged on its way is asked for again at once.
"""

import itertools
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
import structlog
import torch

from lectern_common.errors import TeacherError
from lectern_common.replicas import TeacherReplicas
from lectern_common.teacher_channel import TeacherChannel
from lectern_common.teacher_identity import TeacherIdentity, require_same_teacher
from lectern_common.wire.formats import PROTOCOL_VERSION, Representation, Widths, pack_mask
from lectern_models.output_head import OutputHead
from protos import teacher_pb2
from student_trainer.head_assembly import assemble_head
from student_trainer.head_cache import cached_head_path, read_cached_head, write_cached_head
from student_trainer.outage import Outage
from student_trainer.reply_assembly import (
    DamagedReply,
    Expected,
    assemble,
    to_targets,
)
from student_trainer.stopping import SLICE_SECONDS, Stop, StopRequested
from student_trainer.targets import TeacherTargets, joined
from student_trainer.token_rows import every_position_logits, last_position_logits

_log = structlog.get_logger()

_SHORT_CALL_SECONDS = 10.0
# Damage that comes so often in a row is no accident of the network.
MAX_DAMAGED_REPLIES = 3
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

_Answer = TypeVar("_Answer")


class RemoteTeacher:
    """Scores through a teacher server. Use as a context manager, or call close().

    Args:
        replicas: the servers to ask; closed with this object.
        run_id: whose account the work goes to.
        vocab_size: V, the student's; rows cover ids 0 .. V - 1.
        device: where the output head is wanted.
        deadline_seconds: longest wait for one answer.
        outage_budget_seconds: see outage.py.
        cache_root: where output heads are kept.
        stop: ends every wait and every call.
        on_outage: see outage.py.
    """

    def __init__(
        self,
        replicas: TeacherReplicas,
        *,
        run_id: str,
        vocab_size: int,
        device: torch.device,
        deadline_seconds: float,
        outage_budget_seconds: float,
        cache_root: Path,
        stop: Stop,
        on_outage: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self._replicas = replicas
        self._run_id = run_id
        self._vocab_size = vocab_size
        self._device = device
        self._deadline_seconds = deadline_seconds
        self._cache_root = cache_root
        self._stop = stop
        self._ended = Stop()
        self._outage = Outage(outage_budget_seconds, self._ended, on_outage)
        self._model: teacher_pb2.Model | None = None
        self._head: OutputHead | None = None
        self._lock = threading.Lock()
        self._head_lock = threading.Lock()  # Held while it is fetched: it crosses the wire once.
        self._calls: set[Any] = set()
        self._received_bytes = 0
        self._received_positions = 0
        self._request_numbers = itertools.count()
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._cancel_on_stop, daemon=True, name="stop-watch")
        self._watch.start()

    def __enter__(self) -> "RemoteTeacher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends calls under way and the connections."""
        self._closed.set()
        self.cancel()
        self._watch.join()
        self._replicas.close()

    def cancel(self) -> None:
        """Ends calls under way, and every later one, with StopRequested. For good."""
        self._ended.request()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def take_received(self) -> tuple[int, int]:
        """Returns (bytes, positions) of the LogitsForBatch replies since the last call.

        Bytes are those of the messages of complete answers, head and requests apart.
        """
        with self._lock:
            taken = self._received_bytes, self._received_positions
            self._received_bytes = self._received_positions = 0
        return taken

    @property
    def model(self) -> teacher_pb2.Model:
        """What the teacher is. Raises ValueError before connect()."""
        if self._model is None:
            raise ValueError("connect() comes first")
        return self._model

    def connect(self, expected: TeacherIdentity | None = None) -> teacher_pb2.Model:
        """Returns what the teacher is, waiting for it within the outage budget.

        Args:
            expected: the model that the run was accepted with.

        Raises:
            WrongModel: another model answers than expected, or the servers bear different ones.
            TeacherError: its fingerprint is none.
            LecternError: as TargetsProvider.score.
        """
        model = self._outage.until_answered(
            lambda left: self._replicas.get_model(_within(_SHORT_CALL_SECONDS, left))
        )
        # The server's word, which becomes a file name: see head_cache.py.
        if not _FINGERPRINT.fullmatch(model.fingerprint):
            raise TeacherError(
                f"the teacher at {self._replicas.address} says its fingerprint is "
                f"{model.fingerprint[:80]!a}; it must be 64 lower-case hex digits"
            )
        if expected is not None:
            require_same_teacher(TeacherIdentity.of(model), expected, self._replicas.address)
        self._model = model
        return model

    def tokenizer_map(self) -> dict[str, int]:
        """Returns the teacher's token-to-id map. Raises LecternError."""
        return self._outage.until_answered(
            lambda left: self._replicas.get_tokenizer_map(_within(self._deadline_seconds, left))
        )

    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> TeacherTargets:
        """See TargetsProvider; also raises StopRequested after cancel().

        More sequences than the teacher takes at once are asked in several requests.
        """
        limit = max(1, self.model.limits.max_sequences)
        if len(sequences) > limit:
            cuts = [slice(first, first + limit) for first in range(0, len(sequences), limit)]
            return joined(
                [
                    self.score(sequences[cut], positions[cut], representation, temperature)
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
        )

        def ask(channel: TeacherChannel, left: float | None) -> TeacherTargets:
            with self._replies(channel, channel.logits_for_batch, request, left) as replies:
                payload = assemble(replies, expected)
            targets = to_targets(payload, expected, temperature, head)
            with self._lock:
                self._received_bytes += payload.received_bytes
                self._received_positions += expected.num_rows
            return targets

        return self._answered(ask)

    def output_head(self) -> OutputHead:
        """Returns the teacher's head cut to V rows, on the device: from the cache, else fetched.

        On the CPU it is float32, so that no projection converts it again; the products are the
        same. Raises LecternError.
        """
        with self._head_lock:
            if self._head is None:
                self._head = self._placed_head()
            return self._head

    def _placed_head(self) -> OutputHead:
        path = cached_head_path(self._cache_root, self.model.fingerprint, self._vocab_size)
        head = read_cached_head(path)
        if head is None or head.weight_VD.shape != (self._vocab_size, self.model.hidden_size):
            head = self._answered(self._fetch_head)
            write_cached_head(path, head)
        dtype = torch.float32 if self._device.type == "cpu" else head.weight_VD.dtype
        return OutputHead(
            head.weight_VD.to(self._device, dtype),
            None if head.bias_V is None else head.bias_V.to(self._device, dtype),
            head.transform,
        )

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
        with self._replies(channel, channel.stub.GetOutputHead, request, left) as replies:
            return assemble_head(replies, model, self._vocab_size)

    def _answered(self, ask: Callable[[TeacherChannel, float | None], _Answer]) -> _Answer:
        """Returns what `ask` makes of the answer of one server, asking again as the module says.

        Args:
            ask: makes the whole request once, to one server; the seconds as in outage.py.

        Raises:
            DamagedReply: MAX_DAMAGED_REPLIES in a row.
            LecternError: as TargetsProvider.score.
        """
        for _ in range(MAX_DAMAGED_REPLIES - 1):
            try:
                return self._outage.until_answered(partial(self._ask_in_turn, ask))
            except DamagedReply as error:
                _log.warning("reply_damaged", error=str(error))
        return self._outage.until_answered(partial(self._ask_in_turn, ask))

    def _ask_in_turn(
        self, ask: Callable[[TeacherChannel, float | None], _Answer], left: float | None
    ) -> _Answer:
        return self._replicas.first_answer(lambda channel: ask(channel, left))

    @contextmanager
    def _replies(
        self, channel: TeacherChannel, method: Any, request: Any, left: float | None
    ) -> Iterator[Iterator[Any]]:
        """Gives the replies of one attempt; within, errors of gRPC become those of errors.py.

        The first attempt fails at once where there is no connection, so that an outage is noticed;
        later ones wait for it, unless another server may be back first.
        """
        self._ended.check()
        call = method(
            request,
            timeout=_within(self._deadline_seconds, left),
            metadata=channel.metadata,
            wait_for_ready=left is not None and self._replicas.is_one,
        )
        with self._lock:
            self._calls.add(call)
        try:
            self._ended.check()
            yield call
        except grpc.RpcError as error:
            if self._ended.requested:
                raise StopRequested from None
            raise channel.translated(error) from None
        finally:
            call.cancel()
            with self._lock:
                self._calls.discard(call)

    def _cancel_on_stop(self) -> None:
        while not self._closed.wait(SLICE_SECONDS):
            if self._stop.requested:
                self.cancel()
                return


def _within(seconds: float, left: float | None) -> float:
    return seconds if left is None else max(min(seconds, left), 0.1)
