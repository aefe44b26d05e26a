"""The datasets, records and models that a spec may name."""

from typing import Literal

from control_plane.views.view import View


class DatasetView(View):
    """One dataset folder, or prompt set, under the data root."""

    path: str
    """Value for `data.path` of a spec; of a prompt set, for `rollout.prompts`."""
    problem: str | None
    holds: Literal["text", "chats", "prompts"] | None = None
    """Prompts are continued by a student, never trained on."""
    document_count: int | None = None
    """Documents, sequences of chats, or prompts; null if unknown."""
    total_tokens: int | None = None
    shard_count: int | None = None
    vocab_size: int | None = None
    seq_length_hint: int | None = None
    tokenizer_sha256: str | None = None


class DatasetsView(View):
    datasets: list[DatasetView]


class RecordView(View):
    """One record of a teacher under the data root. All but `path` is null if there is a problem."""

    path: str
    """Value for `teacher.record` of a spec."""
    problem: str | None
    model: str | None = None
    """Model id of the teacher."""
    fingerprint: str | None = None
    """Of the teacher."""
    holds: list[str] | None = None
    """What was recorded, such as "top_k 64 at temperature 2"."""
    data_path: str | None = None
    """Of which dataset."""
    seq_len: int | None = None
    """The only `data.seq_len` that it can teach."""
    vocab_size: int | None = None
    bytes: int | None = None


class RecordsView(View):
    records: list[RecordView]


class ModelView(View):
    """One model folder under the models root."""

    path: str
    """Value for `student.init` (if it has weights) or `student.config` of a spec."""
    problem: str | None
    architecture: str | None = None
    vocab_size: int | None = None
    has_weights: bool = False
    has_tokenizer: bool = False
    weights_bytes: int | None = None


class ModelsView(View):
    models: list[ModelView]
