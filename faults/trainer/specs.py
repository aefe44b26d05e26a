"""S6: every field of a run's spec, changed between a stop and a resume."""

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from faults.models import write_model
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs import checkpoints
from faults.trainer.runs.courses import Course, teacher
from faults.trainer.runs.run import VOCAB_SIZE, Home, Trainer, events_of
from lectern_common.run.folder import RunFolder
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec

_SECTIONS = {
    "schedule": {"steps": 30},
    "checkpoint": {"every_steps": 10},
    "evaluation": {"every_steps": 15},
}
_STOPPED_AT = 15
_REFUSAL = "a resume may not change it"
_SHARDS = {"data.kind": "shards", "data.path": "text"}

_TEACHERS = {"big": {"record": "other"}}
_SOURCES = {"data.kind": "shards", "data.sources": [{"path": "text", "teacher": "big"}]}

# Field: another value, and whatever else that value needs.
_REFUSED: dict[str, dict[str, Any]] = {
    "name": {"name": "other"},
    "seed": {"seed": 1},
    "teacher.record": {"teacher": {"record": "other"}, **_SHARDS},
    "teachers": {"teachers": _TEACHERS, "teacher": None, **_SOURCES},
    "teacher.model": {"teacher.model": "other"},
    "teacher.representation": {"teacher.representation": "dense"},
    "teacher.top_k": {"teacher.representation": "top_k", "teacher.top_k": 8},
    "teacher.num_draws": {"teacher.representation": "sampled", "teacher.num_draws": 8},
    "teacher.prefetch_steps": {"teacher.prefetch_steps": 2},
    "teacher.vocabulary": {"teacher.vocabulary": "same"},
    "teacher.allow_same_weights": {"teacher.allow_same_weights": True},
    "student.init": {"student.init": "other"},
    "student.revision": {"student.revision": "main"},
    "student.config": {"student.init": None, "student.config": "student"},
    "student.keep_every_nth_layer": {"student.keep_every_nth_layer": 2},
    "student.lora": {"student.lora": {"rank": 4}},
    "student.dtype": {"student.dtype": "bfloat16"},
    "data.kind": _SHARDS,
    "data.path": _SHARDS,
    "data.sources": {"teachers": _TEACHERS, "teacher": None, **_SOURCES},
    "data.seq_len": {"data.seq_len": 16},
    "data.validation_fraction": {"data.validation_fraction": 0.5},
    "data.validation_path": {
        **_SHARDS,
        "data.validation_path": "held-out",
        "data.validation_fraction": None,
    },
    "data.long_chats": {**_SHARDS, "data.long_chats": "drop"},
    "data.attention_across_documents": {**_SHARDS, "data.attention_across_documents": False},
    "data.max_bad_rows_fraction": {"data.max_bad_rows_fraction": 0.5},
    "rollout": {"rollout": {"fraction": 0.5, "prompt_tokens": 4}},
    "objective.alpha": {"objective.alpha": 0.5},
    "objective.temperature": {"objective.temperature": 3.0},
    "objective.divergence": {"objective.divergence": "reverse_kl"},
    "objective.beta": {"objective.divergence": "jsd", "objective.beta": 0.5},
    "objective.chunk_tokens": {"objective.chunk_tokens": 8},
    "optimizer.learning_rate": {"optimizer.learning_rate": 0.5},
    "optimizer.betas": {"optimizer.betas": [0.5, 0.5]},
    "optimizer.weight_decay": {"optimizer.weight_decay": 0.5},
    "optimizer.max_grad_norm": {"optimizer.max_grad_norm": 0.5},
    "schedule.warmup_steps": {"schedule.warmup_steps": 4},
    "schedule.decay": {"schedule.decay": "linear"},
    "schedule.final_fraction": {"schedule.final_fraction": 0.5},
    "batch.sequences_per_step": {"batch.sequences_per_step": 8},
    "batch.micro_batch_sequences": {"batch.micro_batch_sequences": 2},
}
_ALLOWED: dict[str, dict[str, Any]] = {
    "priority": {"priority": 5},
    "group": {"group": "first"},
    "tags": {"tags": ["small"]},
    "notes": {"notes": "a note"},
    "teacher.address": {},  # the address of another server, known later
    "teacher.deadline_seconds": {"teacher.deadline_seconds": 60.0},
    "teacher.outage_budget_seconds": {"teacher.outage_budget_seconds": 60.0},
    "teacher.token_file": {"teacher.token_file": "token"},
    "teacher.tls_ca_file": {"teacher.tls_ca_file": "none"},
    "teacher.tls_cert_file": {
        "teacher.tls_ca_file": "none",
        "teacher.tls_cert_file": "none",
        "teacher.tls_key_file": "none",
    },
    "teacher.tls_key_file": {
        "teacher.tls_ca_file": "none",
        "teacher.tls_cert_file": "none",
        "teacher.tls_key_file": "none",
    },
    "schedule.steps": {"schedule.steps": 31},
    "evaluation.every_steps": {"evaluation.every_steps": 7},
    "evaluation.max_sequences": {"evaluation.max_sequences": 3},
    "evaluation.suites": {"evaluation.suites": ["agreement"]},
    "evaluation.code": {"evaluation.suites": ["code"], "evaluation.code": {"seconds": 2}},
    "evaluation.lm_eval": {"evaluation.suites": ["lm-eval:a"], "evaluation.lm_eval": {"limit": 2}},
    "evaluation.metric": {"evaluation.metric": "val/kl"},
    "evaluation.metric_goal": {
        "evaluation.metric": "val/kl",
        "evaluation.metric_goal": "lowest",
    },
    "evaluation.patience": {"evaluation.patience": 3},
    "evaluation.prompts": {"evaluation.prompts": ["def "]},
    "evaluation.prompt_tokens": {"evaluation.prompts": ["def "], "evaluation.prompt_tokens": 4},
    "checkpoint.every_steps": {"checkpoint.every_steps": 7},
    "checkpoint.keep_last": {"checkpoint.keep_last": 5},
    "checkpoint.keep_best": {"checkpoint.keep_best": 0},
    "device.kind": {"device.kind": "auto"},
    "device.count": {"device.count": 2},
    "device.max_restarts": {"device.count": 2, "device.max_restarts": 1},
    "device.threads": {"device.threads": 2},
    "device.compile": {"device.compile": True},
    "device.activation_checkpointing": {"device.activation_checkpointing": True},
    "report_to": {"report_to": ["tensorboard"]},
}
# A resume may change these; here they are refused because something else is missing.
_LACKING = (
    "teacher.tls",
    "evaluation.prompt",
    "evaluation.code",
    "evaluation.lm_eval",
    "evaluation.metric",
)
# Needs a dataset, which the run here has not.
_UNTRIED = {"teacher.record_to"}
# Sections that may be absent count as one field.
_OPTIONAL = ("lora", "code", "lm_eval", "rollout")


@dataclass(frozen=True)
class Stopped:
    """A stopped run, whose copies are resumed with other specs."""

    stage: Stage
    course: Course
    folder: RunFolder

    def resumed(self, changes: Mapping[str, Any]) -> tuple[Trainer, RunFolder]:
        """Starts a trainer on a copy whose spec has these values, by dotted field."""
        folder = RunFolder(self.folder.path.with_name(f"copy-{self.stage.new_folder().name}"))
        shutil.copytree(self.folder.path, folder.path)
        folder.write_spec(parse_spec(_changed(folder.read_spec(), changes)))
        home = self.course.home
        return Trainer(self.stage, home, folder, ("--resume",), forked=True), folder


def changed_specs(stage: Stage) -> Tally:
    """S6: changes each field separately, several at once, and the steps to fewer than made."""
    tally = Tally()
    home = Home(stage)
    write_model(home.roots.models / "init", vocab_size=VOCAB_SIZE, hidden=32, seed=3)
    home.roots.secrets.mkdir(parents=True, exist_ok=True)
    (home.roots.secrets / "token").write_text("0" * 64)
    (home.roots.secrets / "token").chmod(0o600)
    with teacher(stage, home) as address, teacher(stage, home) as other:
        course = Course.tried(
            stage,
            home,
            **_SECTIONS,
            teacher={"address": address, "outage_budget_seconds": 30},
            objective={"alpha": 0.25},
            student={"config": None, "init": "init"},
        )
        stopped = Stopped(stage, course, _stopped(stage, course))
        allowed = _ALLOWED | {"teacher.address": {"teacher.address": other}}
        tries = [(name, changes, True) for name, changes in _REFUSED.items()]
        tries += [(name, changes, False) for name, changes in allowed.items()]

        def tried(entry: tuple[str, dict[str, Any], bool]) -> str:
            name, changes, refused = entry
            stage.say(name)
            return _refused(stopped, changes) if refused else _allowed(stopped, name, changes)

        chosen = tries[:: stage.tries(1, 9)]
        with ThreadPoolExecutor(2) as pool:
            for (name, _, _), problem in zip(chosen, pool.map(tried, chosen), strict=True):
                tally.count(not problem, f"{name}: {problem}")
        at_once = {key: value for name in _AT_ONCE for key, value in _REFUSED[name].items()}
        problem = _refused(stopped, at_once)
        tally.count(not problem, f"{len(at_once)} at once: {problem}")
        problem = _too_few_steps(stopped)
        tally.count(not problem, f"fewer steps than already made: {problem}")
    untried = _fields(RunSpec) - _REFUSED.keys() - _ALLOWED.keys() - _UNTRIED
    tally.require(not untried, f"no other value is listed here for {', '.join(sorted(untried))}")
    tally.figure = (
        f"{len(_REFUSED)} fields refused, each named with its old and new value; {len(_ALLOWED)} "
        "allowed, and the run continues"
    )
    return tally


_AT_ONCE = ("seed", "objective.alpha", "optimizer.betas", "schedule.decay", "student.dtype")


def _stopped(stage: Stage, course: Course) -> RunFolder:
    folder = course.begin()
    trainer = Trainer(stage, course.home, folder, forked=True, faults=("waiting-steps=0.02",))
    try:
        trainer.wait_for_step(_STOPPED_AT, 60)
        trainer.terminate()
        if trainer.wait(60) != 0:
            raise RuntimeError(f"it did not stop: {trainer.status}")
    finally:
        trainer.kill()
    return folder


def _refused(stopped: Stopped, changes: Mapping[str, Any]) -> str:
    """Returns "" if a resume with these changes is refused by name, and changes nothing."""
    trainer, folder = stopped.resumed(changes)
    try:
        exit_status = trainer.wait(60)
    finally:
        trainer.kill()
    status = trainer.status
    if exit_status != 1 or status is None or status.reason != "invalid_spec":
        return f"it exited with status {exit_status}: {status}"
    before, after = stopped.folder.read_spec().model_dump(), folder.read_spec().model_dump()
    for name in _names(changes, before):
        was, now = _value(before, name), _value(after, name)
        if f"{name}: was {was!r}, is {now!r}; {_REFUSAL}" not in str(status.message):
            return f"it does not say that {name} was {was!r}: {status.message}"
    same = folder.metrics_path.read_bytes() == stopped.folder.metrics_path.read_bytes()
    return "" if same and len(checkpoints.visible(folder)) else "the run was changed"


def _names(changes: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[str]:
    """Yields the changed fields; of a section that was there those that it is made of."""
    for name, value in changes.items():
        is_section = isinstance(before.get(name), dict) and isinstance(value, dict)
        yield from (f"{name}.{field}" for field in value) if is_section else (name,)


def _allowed(stopped: Stopped, name: str, changes: Mapping[str, Any]) -> str:
    """Returns "" if a resume with these changes continues from the checkpoint."""
    trainer, folder = stopped.resumed(changes)
    begun = len(events_of(folder, "assembled"))
    try:
        trainer.wait_until(lambda: len(events_of(folder, "assembled")) > begun, 120)
        status = trainer.status
    finally:
        trainer.kill()  # its ranks, if any, end with it
    assembled = events_of(folder, "assembled")[begun:]
    if assembled:
        step = checkpoints.newest_step(stopped.folder)
        return (
            "" if assembled[0]["step"] == step else f"it continued from step {assembled[0]['step']}"
        )
    if status is None or not name.startswith(_LACKING) or _REFUSAL in str(status.message):
        return f"it did not continue: {status}"
    return ""


def _too_few_steps(stopped: Stopped) -> str:
    trainer, _ = stopped.resumed({"schedule.steps": 6})
    try:
        exit_status = trainer.wait(60)
    finally:
        trainer.kill()
    status = trainer.status
    named = status is not None and "schedule.steps is 6, but" in str(status.message).replace(
        ":", ""
    )
    return "" if exit_status == 1 and named else f"status {exit_status}: {status}"


def _changed(spec: RunSpec, changes: Mapping[str, Any]) -> dict[str, Any]:
    data = spec.model_dump(mode="json")
    for name, value in changes.items():
        *sections, field = name.split(".")
        place = data
        for section in sections:
            place = place[section]
        place[field] = value
    if data["device"]["count"] == 1:
        data["device"]["max_restarts"] = None
    return data


def _value(data: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        data = data[part]
    return data


def _fields(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Returns the dotted names of all fields; a section that may be absent counts as one."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        section = next(_sections_of(field.annotation), None)
        if section is None or name in _OPTIONAL:
            names.add(prefix + name)
        else:
            names |= _fields(section, f"{prefix}{name}.")
    return names


def _sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    options = (
        get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    )
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            yield option
