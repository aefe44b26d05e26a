"""Opens what is evaluated: a run's student, a model from a folder or the hub, or a teacher server.

Legend: B sequences of equal length, S tokens, D hidden size.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lectern_common.errors import InvalidRequest, Misconfigured, NotFound
from lectern_common.roots import Roots, resolve_under
from lectern_common.run.folder import RunFolder
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sections import TeacherSpec
from lectern_common.stages.evaluate import EvaluateRequest, is_address
from lectern_common.teacher.secrets import SecretFiles
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_map import TokenizerMap
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_models.body_and_head import split_or_why
from lectern_models.loading import (
    dtype_name,
    load_causal_lm,
    max_positions,
    num_parameters,
    tokenizer_map,
)
from lectern_models.logits.output_head import OutputHead
from lectern_models.model_folder import CONFIG_NAME, find_model, find_on_hub
from student_trainer.evaluating.words import TextTokenizer
from student_trainer.journal.checkpoint import read_checkpoint
from student_trainer.stop import Stop
from student_trainer.student.load import load_student
from student_trainer.student.student import Student, compute_dtype_named
from student_trainer.student.tensors import load_model_tensors
from student_trainer.targets import TargetsProvider
from student_trainer.teacher.local import InProcessTeacher
from student_trainer.teacher.remote import RemoteTeacher, teacher_of

_WIDEST = 1 << 31  # more ids than any model has


class LoadedModel(Student):
    """A model in any dtype, as scoring sees it: body and head; it is not trained.

    Raises:
        Misconfigured: its head cannot be split off.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        parts, why = split_or_why(model)
        if parts is None:
            raise Misconfigured(f"this model cannot be scored: {why}")
        self.model = model
        self._parts = parts
        self.vocab_size = parts.head().vocab_size

    def hidden_states(self, input_ids_BS: Tensor, position_ids_BS: Tensor | None = None) -> Tensor:
        return self._parts.hidden_states(input_ids_BS, position_ids_BS)

    def output_head(self) -> OutputHead:
        return self._parts.head()


@dataclass
class Subject:
    """A model that is evaluated.

    Attributes:
        words: what it is, for people.
        model: transformers' own, to generate with; None for a server.
        student: the same, to score; None for a server.
        provider: answers like a teacher; of a model, made when it is asked for.
        folder: with its tokenizer; None if it has none here.
        tokens: returns its token-to-id map; None if it is unknown.
        max_positions: its longest sequence; None means no limit.
        max_tokens: that it takes in one request; None means no limit.
        run: the run that it is of.
        spec: that run's.
        facts: what the result says about it.
    """

    words: str
    device: torch.device
    model: PreTrainedModel | None = None
    student: Student | None = None
    server: RemoteTeacher | None = None
    folder: Path | None = None
    tokens: Callable[[], TokenizerMap | None] = lambda: None
    max_positions: int | None = None
    max_tokens: int | None = None
    run: RunFolder | None = None
    spec: RunSpec | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        if self.student is not None:
            return self.student.vocab_size
        if self.server is None:
            raise ValueError("a subject has a model or a server")
        return self.server.model.logit_width

    def provider(self, vocab_size: int) -> TargetsProvider:
        """Returns it as a teacher whose rows cover ids 0 to vocab_size - 1."""
        if self.model is not None:
            return InProcessTeacher(self.model, min(vocab_size, self.vocab_size))
        if self.server is None:
            raise ValueError("a subject has a model or a server")
        return self.server

    def tokenizer(self) -> TextTokenizer:
        """Returns its tokenizer. Raises NotFound without one."""
        if self.folder is None:
            raise NotFound(
                f"{self.words} has no {TOKENIZER_NAME} here, so texts have no tokens: set "
                "text.data to a dataset that `lectern data prepare` made with its tokenizer"
            )
        return TextTokenizer(self.folder)


@dataclass(frozen=True)
class Opener:
    """Opens the models that a request names.

    Attributes:
        asked: the request.
        roots: what its names are relative to.
        device: where models are put.
        stop: ends every wait.
        stack: closes what was opened.
    """

    asked: EvaluateRequest
    roots: Roots
    device: torch.device
    stop: Stop
    stack: ExitStack

    def subject(self) -> Subject:
        """Returns the model that is evaluated.

        Raises:
            NotFound: there is no such run, checkpoint, export, folder or hub id.
            LecternError: it cannot be loaded, or the server not be reached.
        """
        return self._open("model", self.asked.model, self.asked.weights, self.asked.revision)

    def teacher(self, vocab_size: int) -> Subject | None:
        """Returns the model that the subject, of so many logits, is compared with, if any."""
        if self.asked.against is None:
            return None
        return self._open("against", self.asked.against, None, None, vocab_size)

    def _open(
        self,
        field: str,
        name: str,
        weights: str | int | None,
        revision: str | None,
        vocab_size: int | None = None,
    ) -> Subject:
        self.stop.check()
        if is_address(name):
            return self._server(name, vocab_size)
        folder = None if name.startswith("/") else resolve_under(self.roots.runs, name, field)
        if folder is not None and RunFolder(folder).spec_path.is_file():
            return self._of_run(field, RunFolder(folder), weights or "export")
        if weights is not None:
            raise InvalidRequest(
                f"{name} is not a run under {self.roots.runs}; only a run has weights to choose",
                "weights",
            )
        return self._of_folder(field, name, revision)

    def _server(self, address: str, vocab_size: int | None) -> Subject:
        secrets = SecretFiles.of(self.asked)
        remote = self.stack.enter_context(
            teacher_of(
                TeacherSpec(address=address, outage_budget_seconds=60.0, **secrets.named()),
                self.roots,
                run_id="evaluate",
                vocab_size=vocab_size or _WIDEST,
                device=self.device,
                stop=self.stop,
            )
        )
        served = remote.connect()
        remote.narrow()
        return Subject(
            f"{served.model_id} at {address}",
            self.device,
            server=remote,
            tokens=remote.tokenizer_map,
            max_positions=served.limits.max_sequence_tokens or None,
            max_tokens=served.limits.max_tokens or None,
            facts={
                "model": served.model_id,
                "fingerprint": served.fingerprint,
                "weights_sha256": served.weights_sha256,
            },
        )

    def _of_folder(self, field: str, name: str, revision: str | None) -> Subject:
        local = (
            Path(name) if name.startswith("/") else resolve_under(self.roots.models, name, field)
        )
        if local.exists() and revision is None:
            found = find_model(str(local), field=field)
        elif name.startswith("/"):
            raise NotFound(f"{field}: no model folder {name}")
        else:
            found = find_on_hub(name, revision, field)
        model = load_causal_lm(
            found.path, self._dtype(), str(self.device), gguf_file=found.gguf_file
        )
        facts = {"model": found.public_name, "revision": found.revision or None}
        return self._loaded(name, LoadedModel(model), model, found.path, facts)

    def _of_run(self, field: str, run: RunFolder, weights: str | int) -> Subject:
        spec = run.read_spec()
        if weights == "export":
            if not (run.export_path / CONFIG_NAME).exists():
                raise NotFound(
                    f"{field}: run {run.run_id} has no export, which a run has once it has "
                    "succeeded; set weights to the step of one of its checkpoints, or initial"
                )
            # So that a result says which export it is of, should the run be exported again.
            facts = {"weights_sha256": weights_sha256(safetensors_files(run.export_path))}
            model = load_causal_lm(run.export_path, self._dtype(), str(self.device))
            subject = self._loaded(
                f"run {run.run_id}", LoadedModel(model), model, run.export_path, facts
            )
        else:
            subject = self._of_training(field, run, spec, weights)
        subject.run, subject.spec = run, spec
        subject.facts |= {"run": run.run_id, "weights": weights}
        return subject

    def _of_training(
        self, field: str, run: RunFolder, spec: RunSpec, weights: str | int
    ) -> Subject:
        """Returns the student of a run as it was before training, or at a checkpoint."""
        checkpoint = None
        if isinstance(weights, int):
            path = run.checkpoints_path / f"step-{weights:08d}"
            if not path.is_dir():
                there = sorted(one.name for one in run.checkpoints_path.glob("step-*"))
                steps = ", ".join(str(int(one.removeprefix("step-"))) for one in there) or "none"
                raise NotFound(
                    f"{field}: run {run.run_id} has no checkpoint of step {weights}; there: {steps}"
                )
            checkpoint = read_checkpoint(path)
        begun = None if checkpoint is None else checkpoint.state
        loaded = load_student(spec, self.roots, self.device, begun)
        if checkpoint is not None:
            load_model_tensors(loaded.student, checkpoint.model_tensors())
        loaded.student.eval()
        folders = [run.export_path, loaded.folder]
        for one in spec.by_source()[:1]:  # all sources have one tokenizer
            if one.data.path is not None:
                folders.append(resolve_under(self.roots.data, one.data.path, "data.path"))
        which = f"step {weights}" if isinstance(weights, int) else weights
        folder = next((one for one in folders if (one / TOKENIZER_NAME).exists()), None)
        return self._loaded(
            f"run {run.run_id} ({which})", loaded.student, loaded.student.model, folder, {}
        )

    def _loaded(
        self,
        words: str,
        student: Student,
        model: PreTrainedModel,
        folder: Path | None,
        facts: dict[str, Any],
    ) -> Subject:
        has_one = folder is not None and (folder / TOKENIZER_NAME).exists()
        facts = {**facts, "parameters": num_parameters(model), "dtype": dtype_name(model.dtype)}
        return Subject(
            words,
            self.device,
            model,
            student,
            folder=folder if has_one else None,
            tokens=lambda: None if folder is None else tokenizer_map(folder),
            max_positions=max_positions(model),
            facts=facts,
        )

    def _dtype(self) -> str:
        return dtype_name(compute_dtype_named(self.asked.dtype, self.device))
