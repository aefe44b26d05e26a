"""Switches off each row's protection: one function per row, run in a process before it starts.

Each gets the program, "teacher", "trainer", "control" or "lectern", and changes only what the row's
`protection` names. Everything is imported late, so that the programs start with next to nothing.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

from faults.control import sabotage as control_sabotage
from faults.launchers import sabotage as launcher_sabotage
from faults.record import sabotage as record_sabotage
from faults.replacing import put
from faults.rollouts import sabotage as rollout_sabotage
from faults.trainer import sabotage as trainer_sabotage


def _no_outage_budget(program: str) -> None:
    if program == "trainer":
        from student_trainer.teacher.outage import Outage

        original = Outage.__init__

        def without(self: Outage, budget_seconds: float, *rest: Any, **named: Any) -> None:
            original(self, 0.0, *rest, **named)

        put(Outage, "__init__", without)


def _no_checkpoint_at_the_end(program: str) -> None:
    if program == "trainer":
        from student_trainer.run import loop

        def save(*_: object) -> None:
            return

        put(loop, "_save", save)


def _no_deadline(program: str) -> None:
    if program == "trainer":
        from student_trainer.teacher import calls as teacher_calls

        def forever(_seconds: float, _left: float | None) -> None:
            return None

        put(teacher_calls, "_within", forever)


def _fingerprints_not_compared(program: str) -> None:
    def trusting(*_: object) -> None:
        return

    if program == "trainer":
        from lectern_common.teacher.replicas import TeacherReplicas
        from student_trainer.teacher import head
        from student_trainer.teacher import remote as remote_teacher
        from student_trainer.teacher import reply as reply_assembly

        def first_model(self: TeacherReplicas, timeout_seconds: float = 10.0) -> Any:
            return self.first_answer(lambda channel: channel.get_model(timeout_seconds))

        put(TeacherReplicas, "get_model", first_model)
        put(reply_assembly, "require_fingerprint", trusting)
        put(head, "require_fingerprint", trusting)
        put(remote_teacher, "require_same_teacher", trusting)
    else:
        from teacher_server.rpc import validation

        put(validation, "require_model", trusting)


def _every_request_is_queued(program: str) -> None:
    from teacher_server.scheduling.admission import Admission

    def admit(_self: Admission, _run_id: str, _tickets: object) -> None:
        return

    put(Admission, "require_place", admit)


def _first_come_first_served(program: str) -> None:
    from teacher_server.scheduling.fair_share import FairShare

    def oldest(_self: FairShare, waiting: Any) -> str:
        run_id: str = next(iter(waiting))  # in order of arrival
        return run_id

    put(FairShare, "next", oldest)


def _cancellation_is_not_noticed(program: str) -> None:
    from teacher_server.rpc.servicer import TeacherServicer
    from teacher_server.scheduling.batcher import Batcher

    handler, admitted = TeacherServicer.LogitsForBatch, Batcher.admitted
    left_alone: set[asyncio.Task[Any]] = set()

    async def shielded(self: TeacherServicer, request: Any, context: Any) -> None:
        task = asyncio.ensure_future(handler(self, request, context))
        left_alone.add(task)
        task.add_done_callback(left_alone.discard)
        await asyncio.shield(task)

    def without_deadline(self: Batcher, request: Any, _timeout_seconds: Any) -> Any:
        return admitted(self, request, None)

    put(TeacherServicer, "LogitsForBatch", shielded)
    put(Batcher, "admitted", without_deadline)


def _places_of_the_gone_are_kept(program: str) -> None:
    from teacher_server.scheduling.batcher import Batcher

    original = Batcher.admitted

    @contextlib.contextmanager
    def leaking(self: Batcher, *arguments: Any) -> Iterator[Any]:
        admission = original(self, *arguments)
        ticket = admission.__enter__()
        kept.append(admission)
        yield ticket  # does not return here if the client has gone
        admission.__exit__(None, None, None)
        kept.remove(admission)

    kept: list[Any] = []
    put(Batcher, "admitted", leaking)


def _fields_are_not_checked(program: str) -> None:
    import numpy as np

    from lectern_common.wire.formats import FORMATS, NAMES, Representation
    from teacher_server.rpc import validation

    def trusting(*_: object) -> None:
        return

    def representation(request: Any, _facts: object, _limits: object) -> Representation:
        asked = request.representation
        kind = NAMES.get(asked.kind, "dense")
        taken = FORMATS[kind].parameters
        return Representation(kind, **{name: getattr(asked, name) for name in taken})

    def lengths(request: Any, _limits: object) -> Any:
        return np.array(request.sequence_lengths, np.int64)

    def token_ids(data: bytes, _num_tokens: int, _facts: object) -> Any:
        return np.frombuffer(data[: len(data) // 4 * 4], "<u4")

    put(validation, "require_vocab_size", trusting)
    put(validation, "_representation", representation)
    put(validation, "_temperature", float)
    put(validation, "_sequence_lengths", lengths)
    put(validation, "_token_ids", token_ids)


def _any_reply_size(program: str) -> None:
    from teacher_server.rpc import validation

    def trusting(*_: object) -> None:
        return

    put(validation, "_require_reply_fits", trusting)


def _messages_of_any_size(program: str) -> None:
    from teacher_server import options

    put(options, "request_bytes", lambda *_: (1 << 31) - 1)


def _answers_pile_up(program: str) -> None:
    from teacher_server.scheduling import requests

    put(requests, "MAX_UNREAD_BYTES", 1 << 60)


def _health_waits_for_the_model(program: str) -> None:
    from teacher_server.rpc.server import TeacherServer

    start = TeacherServer.start

    async def started(self: TeacherServer) -> None:
        check = self._health.Check

        async def behind_the_model(request: Any, context: Any) -> Any:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self.model_thread, lambda: None)
            return await check(request, context)

        self._health.Check = behind_the_model
        await start(self)

    put(TeacherServer, "start", started)


def _health_says_serving_at_once(program: str) -> None:
    from grpc_health.v1 import health_pb2

    from teacher_server.rpc.server import TeacherServer

    start = TeacherServer.start

    async def started(self: TeacherServer) -> None:
        await start(self)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    put(TeacherServer, "start", started)


def _no_drain(program: str) -> None:
    from teacher_server.rpc.server import TeacherServer

    drain = TeacherServer.drain

    async def at_once(self: TeacherServer, timeout_seconds: float) -> bool:
        return await drain(self, timeout_seconds=0)

    put(TeacherServer, "drain", at_once)


def _batches_are_not_split(program: str) -> None:
    from lectern_common.errors import TeacherOutOfMemory
    from teacher_server.scheduling.batcher import Batcher

    forward = Batcher._forward
    splitting = contextvars.ContextVar("splitting", default=False)

    async def whole(self: Batcher, flights: Any) -> None:
        if splitting.get():
            for flight in flights:
                self._flights.fail_all(flight, TeacherOutOfMemory("the batch does not fit"))
            return
        token = splitting.set(True)
        try:
            await forward(self, flights)
        finally:
            splitting.reset(token)

    put(Batcher, "_forward", whole)


def _a_lost_device_is_an_ordinary_error(program: str) -> None:
    from lectern_common.errors import TeacherError
    from teacher_server.engine.seam import DeviceLost
    from teacher_server.engine.transformers import TransformersEngine

    of_the_device = TransformersEngine._of_the_device

    def going_on(self: TransformersEngine, work: Callable[[], Any]) -> Any:
        try:
            return of_the_device(self, work)
        except DeviceLost as error:
            raise TeacherError(str(error)) from error

    put(TransformersEngine, "_of_the_device", going_on)


def _values_are_not_looked_at(program: str) -> None:
    from teacher_server.engine import representations
    from teacher_server.engine import transformers as transformers_engine
    from teacher_server.engine.seam import ComputedRows

    def any_value(_values: object) -> None:
        return None

    put(representations, "first_bad_row", any_value)

    def hidden_rows(hidden_SD: Any) -> ComputedRows:
        return ComputedRows(representations.bits(hidden_SD).data.cast("B"))

    put(transformers_engine, "hidden_rows", hidden_rows)


def _independent_batches_freely(program: str) -> None:
    from teacher_server.engine.transformers import TransformersEngine
    from teacher_server.scheduling import scheduler
    from teacher_server.scheduling.batch_shapes import NearLengths

    near = NearLengths()
    put(near, "_limit", lambda tokens: float(tokens))
    put(scheduler, "equal_lengths", near)
    put(TransformersEngine, "_hidden_rows", TransformersEngine._hidden_together)


def _any_token_is_right(program: str) -> None:
    import hmac

    from teacher_server.rpc import auth

    class Comparison:
        def compare_digest(self, *_: object) -> bool:
            return True

    put(auth, "hmac", Comparison())
    if hmac.compare_digest(b"a", b"b"):
        raise RuntimeError("more than the server's own comparison was changed")


def _anyone_may_be_let_in(program: str) -> None:
    from teacher_server.rpc import auth

    def trusting(*_: object) -> None:
        return

    put(auth, "require_callers_known", trusting)


def _ask_once(program: str) -> None:
    if program == "trainer":
        from student_trainer.teacher.outage import Outage

        def once(_self: Outage, ask: Callable[[float | None], Any]) -> Any:
            return ask(None)

        put(Outage, "until_answered", once)


ROWS: dict[str, Callable[[str], None]] = {
    "T1": _no_outage_budget,
    "T2": _no_checkpoint_at_the_end,
    "T3": _no_deadline,
    "T4": _fingerprints_not_compared,
    "T5": _every_request_is_queued,
    "T6": _first_come_first_served,
    "T7": _cancellation_is_not_noticed,
    "T8": _places_of_the_gone_are_kept,
    "T9": _fields_are_not_checked,
    "T10": _any_reply_size,
    "T11": _messages_of_any_size,
    "T12": _answers_pile_up,
    "T13": _health_waits_for_the_model,
    "T14": _health_says_serving_at_once,
    "T15": _no_drain,
    "T16": _batches_are_not_split,
    "T17": _a_lost_device_is_an_ordinary_error,
    "T18": _values_are_not_looked_at,
    "T19": _independent_batches_freely,
    "T20": _any_token_is_right,
    "T21": _anyone_may_be_let_in,
    "T22": _ask_once,
    **trainer_sabotage.ROWS,
    **record_sabotage.ROWS,
    **rollout_sabotage.ROWS,
    **control_sabotage.ROWS,
    **launcher_sabotage.ROWS,
}
