"""The settings of `lectern data prepare`, with their checks."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lectern_common.errors import InvalidRequest
from lectern_common.words import inert_name
from lectern_data.read.hub import HubDataset
from lectern_data.read.rows import Content
from lectern_data.read.scan import MAX_DOCUMENT_BYTES
from lectern_data.tokens.bos_policy import BosChoice
from lectern_data.tokens.pieces import PIECE_BYTES
from lectern_data.write.written_parts import EosPolicy, Layout

DEFAULT_SHARD_TOKENS = 1 << 24
VALIDATION_SUFFIX = "-validation"

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); the stages in order are "fetching" (rows), "reading" (bytes),
"tokenizer", "tokenizing" and "writing" (documents)."""


@dataclass(frozen=True)
class PrepareSettings:
    """All settings of a preparation. Errors name the option of `lectern data prepare`.

    Attributes:
        inputs: files and folders; .jsonl, .json and Parquet files hold one document per row.
        output: folder of the dataset; the validation set goes to `output`-validation.
        hub_dataset: a hub dataset, read after the inputs; None means none.
        tokenizer: a tokenizer.json, or a folder with one. Exactly one of this and
            `train_vocab_size` is set.
        train_vocab_size: size of a byte-level BPE to train on the training part.
        eos_policy: where to put the end-of-text token: nowhere, between or after documents;
            nowhere for prompts.
        eos_token: the end-of-text token; None means the tokenizer's own, as document_end.py chooses
            it.
        bos_policy: where to put the token that begins a text: nowhere, before each document, or at
            the start of each row of a run; "auto" does what the tokenizer does.
        validation_fraction: share of the text, in bytes, held out as whole documents; 0, which
            prompts must have, writes no validation set. Equal documents always fall on the same
            side, and one that is much larger than that share falls into training.
        seed: chooses the documents to hold out.
        include: inside folders, only files that match one of these patterns; empty means all but
            hidden ones.
        exclude: files and folders that match one of these are left out.
        content: what a row holds. Chats go through the tokenizer's chat template, and a mask marks
            the assistant's tokens; of prompts, nothing is learnt.
        date: what a chat template that asks for the date is told; None means the day on which the
            preparation began.
        shard_tokens: tokens per shard file.
        seq_length_hint: row length to record in the manifest.
        max_document_bytes: a larger document is a fault.
        max_fault_fraction: share of the documents that may be unreadable, not text or too large;
            above it nothing is written. Empty ones do not count.
        workers: processes that tokenise; None means one per core.
        piece_bytes: text that a process tokenises at a time, and so the most that it loses if
            killed.
        force: replace existing datasets of these names.

    Raises:
        InvalidRequest: settings that do not fit together, or a number out of range.
    """

    inputs: Sequence[Path]
    output: Path
    hub_dataset: HubDataset | None = None
    tokenizer: Path | None = None
    train_vocab_size: int | None = None
    eos_policy: EosPolicy = "after"
    eos_token: str | None = None
    bos_policy: BosChoice = "auto"
    validation_fraction: float = 0.01
    seed: int = 0
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    content: Content = field(default_factory=Content)
    date: datetime.date | None = None
    shard_tokens: int = DEFAULT_SHARD_TOKENS
    seq_length_hint: int | None = None
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    max_fault_fraction: float = 0.01
    workers: int | None = None
    piece_bytes: int = PIECE_BYTES
    force: bool = False

    def __post_init__(self) -> None:
        self._require_fitting()
        if not 0 <= self.validation_fraction < 1:
            raise InvalidRequest(
                "--validation-fraction must be at least 0 and below 1", "validation_fraction"
            )
        if not 0 <= self.max_fault_fraction <= 1:
            raise InvalidRequest("--max-fault-fraction must be from 0 to 1", "max_fault_fraction")
        for name, number in (
            ("workers", self.workers),
            ("shard_tokens", self.shard_tokens),
            ("seq_length_hint", self.seq_length_hint),
            ("max_document_bytes", self.max_document_bytes),
        ):
            if number is not None and number < 1:
                raise InvalidRequest(f"--{name.replace('_', '-')} must be at least 1", name)

    def _require_fitting(self) -> None:
        if not self.output.name.isprintable():
            why = f"--output {inert_name(self.output.name)} holds a character that cannot be shown"
            raise InvalidRequest(f"{why}; choose another name", "output")
        if self.content.is_prompt:
            self._require_fitting_prompts()
        if self.date is not None and not self.content.is_chat:
            raise InvalidRequest("--date has no effect without --chat", "date")
        if not self.inputs and self.hub_dataset is None:
            raise InvalidRequest("name files or folders, or a hub dataset with --hub", "inputs")
        if (self.tokenizer is None) == (self.train_vocab_size is None):
            raise InvalidRequest(
                "set exactly one of --tokenizer and --train-tokenizer", "tokenizer"
            )
        if self.content.is_chat and self.tokenizer is None:
            raise InvalidRequest(
                "chats need a tokenizer with a chat template; set --tokenizer instead of "
                "--train-tokenizer",
                "tokenizer",
            )

    def _require_fitting_prompts(self) -> None:
        """Raises InvalidRequest for settings that have no effect on prompts."""
        no_end = "a prompt is continued, so no token ends it"
        for option, is_set, why in (
            (
                "train_tokenizer",
                self.train_vocab_size,
                "set --tokenizer, the student's",
            ),
            ("eos_policy", self.eos_policy != "none", no_end),
            ("eos_token", self.eos_token, no_end),
            ("bos_policy", self.bos_policy == "row", "a prompt is not cut into rows"),
            ("validation_fraction", self.validation_fraction, "no prompts are held out"),
            ("seq_length_hint", self.seq_length_hint, "a prompt is not cut into rows"),
        ):
            if is_set:
                name = f"--{option.replace('_', '-')}"
                if option in ("eos_policy", "bos_policy"):
                    name += f" {getattr(self, option)}"
                raise InvalidRequest(f"{name} does not fit --prompts: {why}", option)

    @property
    def targets(self) -> list[Path]:
        """Returns the folders of the training and the validation set; of a prompt set, its own."""
        if self.content.is_prompt:
            return [self.output]
        return [self.output, self.output.with_name(self.output.name + VALIDATION_SUFFIX)]

    @property
    def layout(self) -> Layout:
        """Returns the layout of the ids in files."""
        return Layout(self.eos_policy, self.shard_tokens, self.seq_length_hint, self.content)
