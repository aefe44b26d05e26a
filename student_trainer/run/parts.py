"""The parts, settings and progress of a run: the arguments of `loop.train`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from lectern_common.checks.vocabularies import NOTHING_UNTAUGHT, Untaught
from lectern_common.json_lines import finite_record
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.spec.run_spec import RunSpec
from lectern_common.wire.formats import Representation
from protos import teacher_pb2
from student_trainer.batch import Batch
from student_trainer.evaluating.during import Suites
from student_trainer.evaluation.best import THE_LOSS, Best, Followed
from student_trainer.evaluation.evaluation import ValidationTeacher
from student_trainer.evaluation.samples import Samples
from student_trainer.generating.rollouts.advice import WritingAdvice
from student_trainer.generating.rollouts.kept import KeptRollouts
from student_trainer.generating.rollouts.rows import Rollout
from student_trainer.generating.rollouts.writing import Writer
from student_trainer.journal.checkpoint import CheckpointStore
from student_trainer.journal.recorder import RunRecorder
from student_trainer.objective.loss import Objective
from student_trainer.ranks.world import Ranks
from student_trainer.stop import Stop
from student_trainer.student.student import Student
from student_trainer.targets import TargetsProvider
from student_trainer.teacher.advice import WaitAdvice
from student_trainer.teacher.prefetch import TrainingBatches


@dataclass(frozen=True)
class RunContext:
    """A run's spec, folder, device and ranks: what its parts are made with.

    Attributes:
        spec: the run's current one.
        roots: what the spec's paths are relative to.
        folder: of the run; this process or its supervisor holds the lock.
        device: of this rank.
        ranks: the processes that train the run together; each makes its own parts.
        recorder: records checkpoints, outages and what was loaded.
        stop: ends every wait.
        stack: closes the connection to the teacher.
        held: closes what the run needs until its very end.
    """

    spec: RunSpec
    roots: Roots
    folder: RunFolder
    device: torch.device
    ranks: Ranks
    recorder: RunRecorder
    stop: Stop
    stack: ExitStack
    held: ExitStack = field(default_factory=ExitStack)


class StepRecorder(Protocol):
    """Records the loop's steps. Only `before_checkpoint` may wait."""

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Records the metrics after `step` finished steps."""
        ...

    def before_checkpoint(self) -> None:
        """Makes all records so far outlive this process."""
        ...

    def after_checkpoint(self, step: int) -> None: ...

    def doing(self, activity: str) -> None:
        """Says what the loop does until the next record or checkpoint; a step needs no call."""
        ...

    def event(self, kind: str, **details: Any) -> None: ...


@dataclass(frozen=True)
class Teaching:
    """The teacher, and how the run asks it.

    `take_received` returns the (bytes, positions) received since its last call; None means the
    teacher is in this process. `cancel` ends pending calls. `advice` watches for a run that waits
    too long; None means no advice. `model` is the teacher's description of itself; None means it
    was not asked. `untaught` are the student's ids in which it has no say. `is_recorded`: the
    answers come from a record, which holds as many sets of draws as it was made with.
    `before_checkpoint` makes the answers that the run keeps outlive this process.
    """

    provider: TargetsProvider
    representation: Representation
    prefetch_steps: int = 0
    allow_same_weights: bool = False
    take_received: Callable[[], tuple[int, int]] | None = None
    cancel: Callable[[], None] = lambda: None
    advice: WaitAdvice | None = None
    model: teacher_pb2.Model | None = None
    untaught: Untaught = NOTHING_UNTAUGHT
    is_recorded: bool = False
    before_checkpoint: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Source:
    """One of several sources of a run, its rows, and what is learnt of them.

    Attributes:
        name: what metrics call it.
        teacher: the name of its teacher; None without one, then the objective's alpha is 1.
        objective: of its rows, without the ids that its teacher cannot teach.
        validation: returns its held-out batches, the same in every call.
    """

    name: str
    teacher: str | None
    objective: Objective
    validation: Callable[[], Iterable[Batch]]


@dataclass(frozen=True)
class Mixed:
    """What a run of several sources has instead of one teacher.

    Attributes:
        sources: in the order of the spec.
        teachings: the teachers by name, in the order of the spec; none for cross entropy only.
        asks_about_validation: the same, asked about held-out rows.
        temperature: of all objectives.
        epoch_of: returns in which of its epochs a source is at the beginning of a step.
    """

    sources: Sequence[Source]
    teachings: Mapping[str, Teaching]
    asks_about_validation: Mapping[str, ValidationTeacher]
    temperature: float
    epoch_of: Callable[[int, int], int]


@dataclass(frozen=True)
class Settings:
    """The numbers of a run; `learning_rate` returns the rate of a step (0-based).

    `patience`: how many evaluations in a row without a new best value of `followed` end the run;
    None means they never do.
    """

    steps: int
    learning_rate: Callable[[int], float]
    objective: Objective
    micro_batch_sequences: int
    max_grad_norm: float = 1.0
    evaluate_every: int = 100
    patience: int | None = None
    followed: Followed = THE_LOSS
    checkpoint_every: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of.

    Attributes:
        student: trained in place, on `device`.
        optimizer: over the student's parameters; the loop sets its learning rate.
        batches: training data; this rank's rows of each step.
        validation: returns the held-out batches, the same in every call; None means never evaluate.
        teaching: None exactly if the objective's alpha is 1, or the run has several sources.
        mixed: the sources and teachers of a run of several; None for one dataset.
        recorder: records every step.
        checkpoints: None means none are saved.
        checkpoint_facts: further content of every checkpoint's state.
        ranks: the processes that train the run together; each has its own Parts.
        steps_per_epoch: steps that it takes to see every row, or every prompt if the student writes
            all rows, once; None means epochs are not counted.
        writer: how the student writes rows; None means that all are of data.
        in_flight: rollouts that a checkpoint holds, of the step to go on with; None without any.
        writing_advice: watches for a run that writes most of the time; None means no advice.
        kept_rollouts: keeps some of them for people to read; None means none, or on this rank.
        samples: the sample texts; None without prompts.
        suites: what evaluations measure besides the validation loss; None means nothing.
    """

    student: Student
    optimizer: torch.optim.Optimizer
    device: torch.device
    batches: TrainingBatches
    validation: Callable[[], Iterable[Batch]] | None
    teaching: Teaching | None
    recorder: StepRecorder
    checkpoints: CheckpointStore | None = None
    checkpoint_facts: dict[str, Any] = field(default_factory=dict)
    stop: Stop = field(default_factory=Stop)
    ranks: Ranks = field(default_factory=Ranks)
    samples: Samples | None = None
    suites: Suites | None = None
    steps_per_epoch: float | None = None
    writer: Writer | None = None
    in_flight: Sequence[Rollout] | None = None
    writing_advice: WritingAdvice | None = None
    kept_rollouts: KeptRollouts | None = None
    mixed: Mixed | None = None


@dataclass
class Progress:
    """How far a run has come: all that a checkpoint holds besides tensors and facts.

    `record` holds the metrics after `step` finished steps; `best` is the best evaluation so
    far.
    """

    step: int = 0
    tokens_seen: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    wall_seconds: float = 0.0
    record: dict[str, Any] = field(default_factory=dict)
    best: Best = field(default_factory=Best)

    def state(self) -> dict[str, Any]:
        """Returns the progress as JSON values, with losses also under the specification's names."""
        record = finite_record(self.record)
        return {
            **asdict(self),
            "record": record,
            "train_loss": record.get("loss/total"),
            "total_loss": record.get("loss/total"),
            "ce_loss": record.get("loss/ce"),
            "kl_loss": record.get("loss/kd"),
            "val_loss": record.get("loss/val"),
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Progress":
        values = {name: state[name] for name in cls.__dataclass_fields__ if name in state}
        return cls(**{**values, "best": Best(**state.get("best", {}))})
