"""The teacher that a run spec asks for, connected and held against student and data."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from lectern_common.checks.compatibility import StudentFacts, require_teacher_fits
from lectern_common.replicas import TeacherReplicas
from lectern_common.roots import Roots, resolve_under
from lectern_common.run_spec import RunSpec
from lectern_common.secret_files import SecretFiles, read_secrets
from lectern_common.shards import ShardManifest
from lectern_common.spec_sections import TeacherSpec
from lectern_common.teacher_identity import TeacherIdentity
from protos import teacher_pb2
from student_trainer.advice import TeacherFacts, WaitAdvice
from student_trainer.origins import LoadedStudent
from student_trainer.remote_teacher import RemoteTeacher
from student_trainer.run_parts import Teaching
from student_trainer.stopping import Stop


def connect_teacher(
    spec: RunSpec,
    teacher: TeacherSpec,
    roots: Roots,
    run_id: str,
    loaded: LoadedStudent,
    manifest: ShardManifest | None,
    device: torch.device,
    taught_by: TeacherIdentity | None,
    stop: Stop,
    on_outage: Callable[[str | None], None],
    stack: ExitStack,
) -> tuple[Teaching, teacher_pb2.Model]:
    """Returns how the run is taught, and what the teacher says of itself.

    Args:
        spec, teacher: the run's; `teacher` is spec.teacher.
        roots: `secrets`, `cache` and `data` are used.
        run_id: by which the teacher's accounts know the run.
        loaded: the student.
        manifest: of the training shards; None for synthetic data.
        device: where targets are used.
        taught_by: what the run was accepted with, or begun with; None: not known yet.
        stop: ends every wait.
        on_outage: told that the teacher is away, or (None) is back.
        stack: closes the connection.

    Raises:
        LecternError: it cannot be reached, is another one, or does not fit.
    """
    secrets = read_secrets(roots, SecretFiles.of(teacher))
    remote = RemoteTeacher(
        TeacherReplicas(teacher.address, secrets.token, secrets.tls),
        run_id=run_id,
        vocab_size=loaded.student.vocab_size,
        device=device,
        deadline_seconds=teacher.deadline_seconds,
        outage_budget_seconds=teacher.outage_budget_seconds,
        cache_root=roots.cache,
        stop=stop,
        on_outage=on_outage,
    )
    stack.enter_context(remote)
    model = remote.connect(taught_by)
    facts = StudentFacts(
        loaded.student.vocab_size,
        loaded.tokens,
        loaded.initial_sha256 if spec.student.init else None,
    )
    path = spec.data.path
    dataset = resolve_under(roots.data, path, "data.path") if path else None
    require_teacher_fits(spec, model, remote.tokenizer_map, facts, manifest, dataset)
    if teacher.asks_for.format.needs_head:
        remote.output_head()
    teaching = Teaching(
        provider=remote,
        representation=teacher.asks_for,
        prefetch_steps=teacher.prefetch_steps,
        allow_same_weights=teacher.allow_same_weights,
        take_received=remote.take_received,
        cancel=remote.cancel,
        advice=WaitAdvice(
            TeacherFacts(
                teacher.representation,
                teacher.prefetch_steps,
                num_replicas=len(teacher.address.split(",")),
                mode=model.mode,
                tokens_per_second=model.measured_tokens_per_second,
            )
        ),
    )
    return teaching, model


def teacher_facts(model: teacher_pb2.Model | None) -> dict[str, Any]:
    """Returns what checkpoints and exports say of the teacher; None: the run has none."""
    return {
        "teacher_model": None if model is None else model.model_id,
        "teacher_fingerprint": None if model is None else model.fingerprint,
        "teacher_weights_sha256": None if model is None else model.weights_sha256,
    }
