"""`python -m student_trainer.run.dry_run`: the checks of a dry run that need torch.

`lectern train --dry-run` starts it, with the resolved spec on standard input. It prints one JSON
object: checks (device, memory, answers), and the numbers behind them. It reads no weights, starts
no run, and leaves no file.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lectern_common.checks.check import Check, Outcome
from lectern_common.checks.needs.memory import (
    FreeMemory,
    MemoryEstimate,
    ModelShape,
    memory_fit,
)
from lectern_common.checks.needs.rollouts import longest_prompt, prompts_folder
from lectern_common.checks.record import open_record
from lectern_common.errors import Incompatible, LecternError, Misconfigured, error_of
from lectern_common.logs import configure_logs
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sections import TeacherSpec
from lectern_common.teacher.address import is_one_server
from lectern_common.teacher.replicas import TeacherReplicas
from lectern_common.teacher.secrets import SecretFiles, read_secrets
from lectern_common.tokens.prompt_sets import prompt_facts
from lectern_common.tokens.shards import open_shards, read_manifest
from protos import teacher_pb2

# Rows of the teacher's head: the whole may be a gigabyte, and a few ids show what is wrong.
_PROBED_HEAD_ROWS = 1024
# Tokens of each probed row: more would only take longer.
_PROBED_TOKENS = 128
_DEADLINE_SECONDS = 30.0


def main(argv: list[str] | None = None) -> int:
    """Prints the checks and returns 0, even if a check has failed."""
    arguments = _parser().parse_args(argv)
    configure_logs("error")
    spec = parse_spec(json.load(sys.stdin))
    print(json.dumps(look(spec, Roots.of_home(), asks_teacher=arguments.ask_teacher)))
    return 0


def look(
    spec: RunSpec, roots: Roots, *, asks_teacher: bool, free: FreeMemory | None = None
) -> dict[str, Any]:
    """Returns {"checks": [...]} and, if known, "shape", "memory", "needed_bytes" and "free".

    Args:
        spec: the run's; its data is known to exist.
        roots: what its paths are relative to.
        asks_teacher: also probe the teacher's answers.
        free: memory to assume instead of what is free now.
    """
    from student_trainer.ranks.device import choose_device, device_name
    from student_trainer.run.checks import free_memory, memory_needed, memory_of_sources

    try:
        device = choose_device(spec.device.kind)
        _require_devices(spec, device.type)
    except LecternError as error:
        return {"checks": [Check.failed("device", error).as_json()]}
    count = f", {spec.device.count} of them" if spec.device.count > 1 else ""
    checks = [Check("device", Outcome.PASS, device_name(device) + count)]
    shape, unknown = _shape(spec, roots)
    if unknown is not None:
        checks.append(unknown)
    model: teacher_pb2.Model | None = None
    if spec.teacher is not None and asks_teacher:
        try:
            if spec.teacher.record is not None:
                model = open_record(spec, roots).model
                said = f"read from the record {spec.teacher.record}; whether it holds every row is "
                check = Check("answers", Outcome.PASS, said + "checked before the first step")
            else:
                model, check = _probed(spec, spec.teacher, roots, shape)
            checks.append(check)
        except LecternError as error:
            checks.append(Check.failed("answers", error))
    models: dict[str, teacher_pb2.Model] = {}
    if spec.data.sources is not None and asks_teacher:
        for check in _answers_of_teachers(spec, roots, shape, models):
            checks.append(check)
    numbers: dict[str, Any] = {}
    if shape is not None:
        free = free or free_memory(device)
        if spec.data.sources is None:
            estimate = memory_needed(spec, shape, model, device, _longest_prompt(spec, roots))
        else:
            estimate = memory_of_sources(spec, shape, models, device)
        check, numbers = _memory(spec, shape, estimate, free)
        checks.append(check)
    return {"checks": [check.as_json() for check in checks], **numbers}


def _require_devices(spec: RunSpec, kind: str) -> None:
    """Raises Misconfigured if this machine has fewer GPUs than device.count."""
    import torch

    if kind == "cuda" and spec.device.count > torch.cuda.device_count():
        raise Misconfigured(
            f"device.count is {spec.device.count}, but torch sees {torch.cuda.device_count()} CUDA "
            "devices; lower it, or start the ranks on several machines with torchrun"
        )


def _shape(spec: RunSpec, roots: Roots) -> tuple[ModelShape | None, Check | None]:
    """Returns the student's shape, or a check that says why it is not known."""
    from student_trainer.student.shape import shape_without_weights

    origin = spec.student
    field = "student.init" if origin.init is not None else "student.config"
    try:
        folder = resolve_under(roots.models, origin.init or str(origin.config), field)
        if folder.is_dir():
            return shape_without_weights(origin, folder), None
    except LecternError as error:
        return None, Check.failed("memory", error)
    what = "the student is not on this machine, so its size is not known"
    if origin.init is not None:
        what = "the student is a hub id, so its size is not known yet"
    return None, Check("memory", Outcome.SKIP, what)


def _longest_prompt(spec: RunSpec, roots: Roots) -> int:
    """Returns the tokens of the longest prompt that the student continues; 0 without any."""
    folder = prompts_folder(spec, roots)
    return longest_prompt(spec, None if folder is None else prompt_facts(folder)) or 0


def _answers_of_teachers(
    spec: RunSpec, roots: Roots, shape: ModelShape | None, models: dict[str, teacher_pb2.Model]
) -> Iterator[Check]:
    """Yields the finding about each of several teachers, and puts its description in `models`."""
    sources = spec.data.sources or []
    for source, one in zip(sources, spec.by_source(), strict=True):
        if source.teacher is None or one.teacher is None or source.teacher in models:
            continue
        try:
            if one.teacher.record is not None:
                models[source.teacher] = open_record(one, roots).model
                said = f"read from the record {one.teacher.record}; whether it holds every row is "
                check = Check("answers", Outcome.PASS, said + "checked before the first step")
            else:
                models[source.teacher], check = _probed(one, one.teacher, roots, shape)
            yield replace(check, message=f"teacher {source.teacher}: {check.message}")
        except LecternError as error:
            said = f"teacher {source.teacher}: {error}"
            yield Check.failed("answers", error_of(error.reason, said))


def _memory(
    spec: RunSpec, shape: ModelShape, estimate: MemoryEstimate, free: FreeMemory
) -> tuple[Check, dict[str, Any]]:
    """Returns the check of memory, and the numbers behind it."""
    fit = memory_fit(estimate, free, spec.device.count)
    check = Check("memory", Outcome.PASS, "the run fits into free memory")
    if fit.problem is not None:
        check = Check.failed("memory", Misconfigured(fit.problem))
    elif fit.warning is not None or fit.note is not None:
        sentences = [sentence for sentence in (fit.warning, fit.note) if sentence is not None]
        check = Check("memory", Outcome.WARN, "; ".join(sentences))
    return check, {
        "shape": asdict(shape),
        "memory": estimate.parts(),
        "free": asdict(free),
        "needed_bytes": fit.needed_bytes,
    }


def _probed(
    spec: RunSpec, teacher: TeacherSpec, roots: Roots, shape: ModelShape | None
) -> tuple[teacher_pb2.Model, Check]:
    """Returns the teacher's description of itself, and the finding of the probe."""
    import torch

    from student_trainer.stop import Stop
    from student_trainer.teacher.calls import TeacherCalls
    from student_trainer.teacher.probe import Answering
    from student_trainer.teacher.remote import RemoteTeacher

    secrets = read_secrets(roots, SecretFiles.of(teacher))
    with TeacherReplicas(teacher.address, secrets.token, secrets.tls) as replicas:
        width = replicas.get_model(_DEADLINE_SECONDS).logit_width
    vocab_size = width if shape is None else min(shape.vocab_size, width)
    asked = vocab_size
    if teacher.asks_for.format.needs_head:
        asked = min(asked, _PROBED_HEAD_ROWS)
    # The head goes to a temporary folder: these are only a few of its rows.
    with (
        tempfile.TemporaryDirectory(prefix="lectern-dry-run-") as cache,
        RemoteTeacher(
            TeacherCalls(
                TeacherReplicas(teacher.address, secrets.token, secrets.tls),
                deadline_seconds=min(teacher.deadline_seconds, _DEADLINE_SECONDS),
                outage_budget_seconds=0.0,
                stop=Stop(),
            ),
            run_id=spec.name,
            vocab_size=asked,
            device=torch.device("cpu"),
            cache_root=Path(cache),
        ) as remote,
    ):
        model = remote.connect()
        answering = Answering.of_model(model, asked, one_server=is_one_server(teacher.address))
        check = _answers(spec, teacher, remote, _rows(spec, roots, vocab_size), answering)
    return model, check


def _answers(
    spec: RunSpec, teacher: TeacherSpec, provider: Any, rows: Any, answering: Any
) -> Check:
    """Returns the finding of the probe.

    Under reverse_kl, the teacher may rule out only what the student rules out too. New weights rule
    out nothing; of others, only the trainer knows.

    Raises:
        LecternError: as probe_teacher says.
    """
    from student_trainer.teacher.probe import probe_teacher

    asked = (provider, rows, teacher.asks_for, spec.objective.temperature, answering)
    may_mask = spec.objective.divergence != "reverse_kl"
    try:
        return Check("answers", Outcome.PASS, probe_teacher(*asked, may_mask=may_mask))
    except Incompatible as error:
        if may_mask or spec.student.init is None:
            raise
        said = probe_teacher(*asked)  # whether anything else is wrong
        said += f"; the run starts only if the student rules out the same ids, otherwise: {error}"
        return Check("answers", Outcome.WARN, said)


def _rows(spec: RunSpec, roots: Roots, vocab_size: int) -> Any:
    """Returns the start of the dataset's first rows, for the probe; chats may be shorter."""
    from student_trainer.batch import Batch
    from student_trainer.data.stream import TokenStream
    from student_trainer.teacher.probe import PROBE_SEQUENCES, ProbeRows

    length, bos = min(spec.data.seq_len, _PROBED_TOKENS), None
    if spec.data.path is None:
        tokens = np.random.default_rng(spec.seed).integers(
            0, vocab_size, PROBE_SEQUENCES * length, np.int64
        )
    else:
        folder = resolve_under(roots.data, spec.data.path, "data.path")
        manifest = read_manifest(folder)
        stream, bos = TokenStream(open_shards(folder, manifest)), manifest.row_bos_id
        length = min(length, len(stream))
        tokens = stream.read(0, min(PROBE_SEQUENCES * length, len(stream))).astype(np.int64)
    rows = tokens[: len(tokens) // length * length].reshape(-1, length)
    if bos is not None:
        rows = np.insert(rows, 0, bos, 1)[:, :length]
    return ProbeRows.of_batch(Batch(rows, rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m student_trainer.run.dry_run")
    parser.add_argument("--ask-teacher", action="store_true", help="probe the teacher's answers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
