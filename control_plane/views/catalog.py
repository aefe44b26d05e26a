"""The datasets and models that a spec may name."""

from control_plane.views.view import View


class DatasetView(View):
    """One dataset folder under the data root."""

    path: str
    """Value for `data.path` of a spec."""
    problem: str | None
    total_tokens: int | None = None
    shard_count: int | None = None
    vocab_size: int | None = None
    seq_length_hint: int | None = None
    tokenizer_sha256: str | None = None


class DatasetsView(View):
    datasets: list[DatasetView]


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
