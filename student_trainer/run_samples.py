"""The prompts that a run spec has student and teacher go on with, checked and opened."""

from typing import Any

from lectern_common.run_spec import RunSpec
from lectern_common.shards import TOKENIZER_NAME
from lectern_models.loading import max_positions
from protos import teacher_pb2
from student_trainer.origins import LoadedStudent
from student_trainer.run_data import Data
from student_trainer.samples import Prompts, encoded_prompts

_UNLIMITED = 1 << 30


def checked_prompts(
    spec: RunSpec, loaded: LoadedStudent, data: Data, model: teacher_pb2.Model | None
) -> Prompts | None:
    """Returns the prompts of evaluation.* as tokens; None where there are none.

    Args:
        spec: the run's.
        loaded: the student; its tokenizer is taken, else that of the data.
        data: of the run; where its manifest has an end of text, one ends a sample.
        model: what the teacher says of itself; None: the run has none.

    Raises:
        InvalidSpec: as encoded_prompts says.
    """
    evaluation = spec.evaluation
    if not evaluation.prompts:
        return None
    folders = [loaded.folder] if data.folder is None else [loaded.folder, data.folder]
    paths = [folder / TOKENIZER_NAME for folder in folders]
    ends = _ends(loaded.student.model.config.get_text_config().eos_token_id)
    if data.manifest is not None and data.manifest.eos_token_id is not None:
        ends.add(data.manifest.eos_token_id)
    limits = [max_positions(loaded.student.model)]
    if model is not None:
        limits.append(model.limits.max_sequence_tokens)
    return encoded_prompts(
        evaluation.prompts,
        evaluation.prompt_tokens or 0,
        next((path for path in paths if path.exists()), None),
        ends=ends,
        vocab_size=loaded.student.vocab_size,
        max_tokens=min((limit for limit in limits if limit), default=_UNLIMITED),
    )


def _ends(token_ids: Any) -> set[int]:
    """Returns a config's eos_token_id, which may be none, one or several, as a set."""
    if token_ids is None:
        return set()
    return {int(token_ids)} if isinstance(token_ids, int) else {int(one) for one in token_ids}
