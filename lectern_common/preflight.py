"""Every check of a run that can be made before it starts, without torch and without a download.

Made before the control plane accepts a run, and by `lectern train` before it makes a folder: a run
that cannot work is refused in one sentence and leaves nothing behind.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from lectern_common.compatibility import StudentFacts, require_data_fits, require_teacher_fits
from lectern_common.errors import CorruptData, InvalidSpec, LecternError, Misconfigured, NotFound
from lectern_common.replicas import TeacherReplicas
from lectern_common.roots import Roots, resolve_under
from lectern_common.run_spec import RunSpec, TeacherSpec
from lectern_common.secret_files import SecretFiles, read_secrets
from lectern_common.shards import TOKENIZER_NAME, ShardManifest, open_shards, read_manifest
from lectern_common.tokenizer_map import (
    TokenizerMap,
    read_tokenizer_map,
)
from lectern_common.weights import cached_weights_sha256, safetensors_files

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_Found = TypeVar("_Found")
_UNKNOWN_STUDENT = StudentFacts(vocab_size=None, tokens=None, weights_sha256=None)


class Outcome(StrEnum):
    """What a check came to."""

    PASS = "pass"  # noqa: S105 - an outcome, no password
    FAIL = "fail"  # the run cannot work; the message says what to change
    SKIP = "skip"  # cannot be known here; the message says who finds out


@dataclass(frozen=True)
class Check:
    """One checked subject: data, validation, student, tokenizer or teacher."""

    subject: str
    outcome: Outcome
    message: str
    error: LecternError | None = None


def preflight(spec: RunSpec, roots: Roots, timeout_seconds: float = 10.0) -> list[Check]:
    """Returns the outcome of every check, in the order that the run would meet them.

    Asks the teacher at `spec.teacher.address`, at most `timeout_seconds` for an answer.
    """
    return list(_checks(spec, roots, timeout_seconds))


def require_startable(spec: RunSpec, roots: Roots, timeout_seconds: float = 10.0) -> None:
    """Returns where no check fails.

    Raises:
        LecternError: of the first check that fails.
    """
    for check in _checks(spec, roots, timeout_seconds):
        if check.error is not None:
            raise check.error


def student_facts(spec: RunSpec, roots: Roots) -> StudentFacts:
    """Returns what the student's folder tells; all None for a hub id that is no local folder.

    Raises:
        InvalidSpec: there is no such folder, or it is not a model folder.
        CorruptData: its weights or tokenizer cannot be read.
    """
    field = "student.init" if spec.student.init is not None else "student.config"
    name = spec.student.init or spec.student.config or ""
    folder = resolve_under(roots.models, name, field)
    if not folder.is_dir():
        if spec.student.init is not None and _HUB_ID.match(name):
            return _UNKNOWN_STUDENT
        raise InvalidSpec([(field, f"no model folder {name!r} under the models root")])
    if spec.student.revision is not None:
        why = f"{name} is a folder under the models root and has no revisions; leave it out"
        raise InvalidSpec([("student.revision", why)])
    config = _read_config(folder, field)
    vocab_size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    tokenizer = folder / TOKENIZER_NAME
    try:
        digest = cached_weights_sha256(safetensors_files(folder)) if spec.student.init else None
    except NotFound as error:
        raise InvalidSpec([(field, str(error))]) from None
    return StudentFacts(
        vocab_size=vocab_size if isinstance(vocab_size, int) else None,
        tokens=read_tokenizer_map(tokenizer) if tokenizer.exists() else None,
        weights_sha256=digest,
    )


def _checks(spec: RunSpec, roots: Roots, timeout_seconds: float) -> Iterator[Check]:
    manifest: ShardManifest | None = None
    if spec.data.path is None:
        yield Check("data", Outcome.PASS, "synthetic tokens; nothing is read")
    else:
        manifest, check = _dataset(spec, roots, "data", "data.path", spec.data.path)
        yield check
    if spec.data.validation_path is not None:
        _, check = _dataset(
            spec, roots, "validation", "data.validation_path", spec.data.validation_path
        )
        yield check
    student, check = _student(spec, roots)
    yield check
    if manifest is not None and student.tokens is not None:
        yield _tokenizer(spec, roots, manifest, student.tokens)
    if spec.teacher is not None:
        yield _teacher(spec, spec.teacher, roots, student, manifest, timeout_seconds)


def _dataset(
    spec: RunSpec, roots: Roots, subject: str, field: str, path: str
) -> tuple[ShardManifest | None, Check]:
    """Returns the manifest, and that the folder holds at least one row."""

    def look() -> tuple[ShardManifest, str]:
        folder = resolve_under(roots.data, path, field)
        try:
            manifest = read_manifest(folder)
        except NotFound:
            why = f"no dataset {path!r} under the data root; make one with `lectern data prepare`"
            raise InvalidSpec([(field, why)]) from None
        open_shards(folder, manifest)
        rows = (manifest.total_tokens - 1) // spec.data.seq_len
        if rows < 1:
            why = f"{path} has {manifest.total_tokens} tokens; a row needs {spec.data.seq_len} + 1"
            raise InvalidSpec([("data.seq_len", why)])
        counts = f"{manifest.total_tokens:,} tokens in {manifest.shard_count} shards"
        return manifest, f"{path}: {counts}, {rows:,} rows of {spec.data.seq_len}"

    return _tried(subject, look, nothing=None)


def _student(spec: RunSpec, roots: Roots) -> tuple[StudentFacts, Check]:
    def look() -> tuple[StudentFacts, str]:
        facts = student_facts(spec, roots)
        origin = (
            f"weights of {spec.student.init}"
            if spec.student.init
            else f"new weights, shaped by {spec.student.config}"
        )
        return facts, f"{origin}, vocabulary of {facts.vocab_size}"

    facts, check = _tried("student", look, nothing=_UNKNOWN_STUDENT)
    if check.outcome is Outcome.PASS and facts is _UNKNOWN_STUDENT:
        message = f"{spec.student.init} is a hub id; the trainer downloads and checks it"
        check = Check("student", Outcome.SKIP, message)
    return facts, check


def _tokenizer(spec: RunSpec, roots: Roots, manifest: ShardManifest, tokens: TokenizerMap) -> Check:
    def look() -> tuple[None, str]:
        dataset = resolve_under(roots.data, str(spec.data.path), "data.path")
        require_data_fits(dataset, manifest, tokens)
        return None, "data and student have the same tokens"

    return _tried("tokenizer", look, nothing=None)[1]


def _teacher(
    spec: RunSpec,
    teacher: TeacherSpec,
    roots: Roots,
    student: StudentFacts,
    manifest: ShardManifest | None,
    timeout_seconds: float,
) -> Check:
    def look() -> tuple[None, str]:
        secrets = read_secrets(roots, SecretFiles.of(teacher))
        with TeacherReplicas(teacher.address, secrets.token, secrets.tls) as replicas:
            models, away = replicas.get_models(timeout_seconds)
            for model in models.values():
                require_teacher_fits(spec, model, replicas.get_tokenizer_map, student, manifest)
        return None, (
            f"{model.model_id} at {', '.join(models)}: {model.num_parameters:,} parameters, "
            f"{model.dtype} on {model.device}; offers {teacher.representation}"
            + "".join(f"; left out for now: {error}" for error in away)
        )

    return _tried("teacher", look, nothing=None)[1]


def _tried(
    subject: str, look: Callable[[], tuple[_Found, str]], nothing: _Found
) -> tuple[_Found, Check]:
    """Returns what `look` found and the passed check, or `nothing` and the failed one."""
    try:
        found, message = look()
    except LecternError as error:
        return nothing, Check(subject, Outcome.FAIL, str(error), error)
    except OSError as error:
        sentence = f"cannot read {error.filename}: {error.strerror}"
        return nothing, Check(subject, Outcome.FAIL, sentence, Misconfigured(sentence))
    return found, Check(subject, Outcome.PASS, message)


def _read_config(folder: Path, field: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise InvalidSpec([(field, f"{folder.name} has no config.json")]) from None
    except ValueError as error:
        raise CorruptData(f"{folder / 'config.json'} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise CorruptData(f"{folder / 'config.json'} is not a model config")
    return config
