"""Stand-ins shared by the tests of several packages: a clock, trainers, a teacher server."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from control_plane.trainers.kinds.kind import Folder
from lectern_common.run.checkpoint_files import (
    MANIFEST_NAME,
    MODEL_NAME,
    OPTIMIZER_NAME,
    STATE_NAME,
    checkpoint_path,
    manifest_of,
    write_json,
)
from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import Identity
from lectern_common.run.status import (
    ATTEMPT_VARIABLE,
    STOP_AT_CHECKPOINT,
    STOP_AT_END,
    RunState,
    Status,
)
from lectern_common.teacher.channel import REASON_KEY
from protos import teacher_pb2, teacher_pb2_grpc

# An address where nobody listens.
NOBODY = "127.0.0.1:1"


class FakeClock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def write_fake_checkpoint(folder: RunFolder, step: int, **state: Any) -> Path:
    """Writes a checkpoint of nothing, intact, unless there is one; returns its folder."""
    path = checkpoint_path(folder.checkpoints_path, step)
    if not path.exists():
        path.mkdir(parents=True)
        for name in (MODEL_NAME, OPTIMIZER_NAME):
            (path / name).write_bytes(f"{name} of {folder.run_id} at {step}".encode())
        spec = folder.read_spec().model_dump(mode="json")
        write_json(path / STATE_NAME, {"step": step, "spec": spec, **state})
        write_json(path / MANIFEST_NAME, manifest_of(path))
    return path


class FakeProcess:
    """A trainer that does what a test says. `status` is what it last wrote."""

    def __init__(
        self, identity: Identity, folder: RunFolder, clock: FakeClock, attempt: int | None = None
    ) -> None:
        self.identity = identity
        self.attempt = attempt
        self.folder = folder
        self.alive = True
        self.exit_status: int | None = None
        self.terminated = 0
        self.told_of_checkpoint = 0
        self.heard_of_checkpoint = False  # whether the last of its statuses are to say so
        self.killed = False
        self._clock = clock

    def say(self, state: RunState | str, **said: Any) -> None:
        """Writes status.json as this process, and makes the checkpoint that it names."""
        now = self._clock()
        status = Status(
            **{
                "run_id": self.folder.run_id,
                "state": RunState(state),
                "since": now,
                "heartbeat": now,
                "pid": self.identity.pid,
                "boot_id": self.identity.boot_id,
                "start_ticks": self.identity.start_ticks,
                "attempt": self.attempt,
                "stops_at": STOP_AT_CHECKPOINT if self.heard_of_checkpoint else STOP_AT_END,
                **said,
            }
        )
        if status.checkpoint_step is not None:
            write_fake_checkpoint(self.folder, status.checkpoint_step)
        self.folder.write_status(status)

    def end(self, exit_status: int = 0) -> None:
        self.alive = False
        self.exit_status = exit_status


class FakeProcesses:
    """control_plane.trainers.launching.local.Processes without any process.

    Attributes:
        started: every process ever made, oldest first.
        forgets_pids: as after a restart of the control plane: exit statuses are unknown.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.started: list[FakeProcess] = []
        self.resumed: list[bool] = []
        self.environments: list[dict[str, str]] = []
        self.forgets_pids = False
        self.fail_next: OSError | None = None
        self._clock = clock
        self._next_pid = 100_000

    def tend(self) -> None:
        """Nothing has to be looked after."""

    def slowed(self) -> str | None:
        return None

    def close(self) -> None:
        """Nothing is held."""

    def forget(self, process: Identity) -> None:
        """Nothing is kept that a test does not want."""

    def start(self, folder: Folder, *, resume: bool, environment: Mapping[str, str]) -> Identity:
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        self._next_pid += 1
        identity = Identity(self._next_pid, "this-boot", 100 * self._next_pid)
        attempt = environment.get(ATTEMPT_VARIABLE)
        self.started.append(
            FakeProcess(
                identity,
                RunFolder(folder.path),
                self._clock,
                None if attempt is None else int(attempt),
            )
        )
        self.resumed.append(resume)
        self.environments.append(dict(environment))
        return identity

    def find(self, folder: Folder, said: Identity | None = None) -> Identity | None:
        return next(
            (
                process.identity
                for process in self.started
                if process.alive and process.folder.path == folder.path
            ),
            None,
        )

    def is_alive(self, process: Identity) -> bool:
        return any(made.alive for made in self._of(process))

    def exit_status(self, process: Identity) -> int | None:
        if self.forgets_pids:
            return None
        return next((made.exit_status for made in self._of(process)), None)

    def terminate(self, process: Identity) -> None:
        for made in self._of(process):
            made.terminated += 1

    def stop_at_checkpoint(self, process: Identity) -> None:
        for made in self._of(process):
            made.told_of_checkpoint += 1

    def kill(self, process: Identity) -> None:
        for made in self._of(process):
            if made.alive:
                made.killed = True
                made.end(-9)

    def alive(self) -> list[FakeProcess]:
        return [process for process in self.started if process.alive]

    def last(self, run_id: str | None = None) -> FakeProcess:
        return [process for process in self.started if run_id in (None, process.folder.run_id)][-1]

    def _of(self, identity: Identity) -> list[FakeProcess]:
        return [process for process in self.started if process.identity == identity]


class FakeTeacher(teacher_pb2_grpc.TeacherServicer):
    """Answers what it is, and nothing that costs. `refusal` is (status code, reason, sentence)."""

    def __init__(self, tokens: Mapping[str, int] | None = None, **model: Any) -> None:
        self.tokens = dict(tokens or {})
        self.refusal: tuple[grpc.StatusCode, str, str] | None = None
        values: dict[str, Any] = {
            "protocol_version": 1,
            "model_id": "fake-teacher",
            "weights_sha256": "f" * 64,
            "fingerprint": "e" * 64,
            "logit_width": 1 << 16,
            "num_tokens": 1,
            "max_positions": 4096,
            "hidden_size": 64,
            "hidden_dtype": teacher_pb2.DTYPE_FLOAT32,
            "dtype": "float32",
            "device": "cpu (fake)",
            "representations": [
                teacher_pb2.RepresentationOffer(kind=kind, offered=True)
                for kind in (
                    teacher_pb2.REPRESENTATION_DENSE,
                    teacher_pb2.REPRESENTATION_HIDDEN,
                    teacher_pb2.REPRESENTATION_TOP_K,
                )
            ],
            "limits": teacher_pb2.Limits(
                max_sequences=64,
                max_tokens=65536,
                max_sequence_tokens=4096,
                max_top_k=1024,
                max_draws=256,
                max_reply_bytes=1 << 30,
                max_request_bytes=1 << 24,
                max_queued_requests=16,
            ),
            "engine": "fixture",
            "mode": "independent",
            "num_parameters": 2_200_000,
        }
        self.model = teacher_pb2.Model(**{**values, **model})
        self.stats = teacher_pb2.Stats(
            fingerprint=self.model.fingerprint,
            uptime_seconds=60.0,
            queued_requests=2,
            running_requests=1,
            scored_tokens=123_456,
            tokens_per_second=9876.5,
            device=self.model.device,
        )

    def GetModel(self, request: Any, context: Any) -> teacher_pb2.Model:
        self._refuse(context)
        return self.model

    def GetStats(self, request: Any, context: Any) -> teacher_pb2.Stats:
        self._refuse(context)
        return self.stats

    def GetTokenizerMap(
        self, request: Any, context: Any
    ) -> Iterator[teacher_pb2.TokenizerMapReply]:
        self._refuse(context)
        yield teacher_pb2.TokenizerMapReply(
            tokens=[token.encode() for token in self.tokens], ids=list(self.tokens.values())
        )

    def _refuse(self, context: Any) -> None:
        if self.refusal is not None:
            code, reason, sentence = self.refusal
            context.set_trailing_metadata(((REASON_KEY, reason),))
            context.abort(code, sentence)


@contextmanager
def serving(teacher: FakeTeacher) -> Iterator[str]:
    """Yields the address that the teacher answers at."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        teacher_pb2_grpc.add_TeacherServicer_to_server(teacher, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
