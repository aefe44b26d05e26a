"""What a run's rollouts are written with: from its spec, student, data and teacher, all checked."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lectern_common.checks.needs.rollouts import (
    longest_rollout,
    prompts_folder,
    require_rollout_positions,
    require_teacher_takes_rollouts,
)
from lectern_common.checks.vocabularies import Untaught
from lectern_common.roots import Roots
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import complete_tokenizer, read_tokenizer_files
from lectern_models.loading import max_positions
from protos import teacher_pb2
from student_trainer.data.prompt_set import PromptSet, open_prompt_set, prompts_of_rows
from student_trainer.data.select import Data
from student_trainer.generating.cache import bytes_per_token
from student_trainer.generating.rollouts.plan import Plan
from student_trainer.generating.rollouts.writing import Writer
from student_trainer.generating.sampling import Sampling
from student_trainer.student.ends import edges_of
from student_trainer.student.load import LoadedStudent

# Tokens of prompts and completions that are in memory at a time, and the bytes of their keys and
# values: a student of half a billion parameters takes 1.6 GB for so many tokens in bfloat16, one of
# seven billion without grouped heads 64 GB.
_TOKENS_IN_HAND = 1 << 17
_BYTES_IN_HAND = 4 << 30


def writer_of(
    spec: RunSpec,
    roots: Roots,
    loaded: LoadedStudent,
    data: Data,
    teacher: teacher_pb2.Model,
    untaught: Untaught,
) -> Writer | None:
    """Returns how the student writes rows; None if it writes none.

    Args:
        spec: the run's.
        roots: what its paths are relative to.
        loaded: the student.
        data: the run's.
        teacher: the teacher's description of itself.
        untaught: ids in which it has no say, which the student must not write: to the teacher they
            would be other tokens, or none.

    Raises:
        Incompatible: prompt and completion exceed what student or teacher take.
        LecternError: as open_prompt_set and prompts_of_rows say.
    """
    rollout, student = spec.rollout, loaded.student
    if rollout is None:
        return None
    prompts = _prompts(spec, roots, loaded, data, rollout.prompt_tokens)
    require_rollout_positions(rollout, prompts.longest, max_positions(student.model))
    require_teacher_takes_rollouts(spec, prompts.longest, teacher, student.vocab_size)
    path = _tokenizer_path(spec, roots, loaded, data)
    files = {} if path is None else read_tokenizer_files(path)
    beyond = range(student.vocab_size - untaught.student_only, student.vocab_size)
    return Writer(
        prompts,
        Plan(
            seed=spec.seed,
            fraction=rollout.fraction,
            sequences_per_step=spec.batch.sequences_per_step,
            samples_per_prompt=rollout.samples_per_prompt,
            num_prompts=len(prompts),
            micro_batch=spec.micro_batch,
            ranks=spec.device.count,
        ),
        Sampling(rollout.temperature, rollout.top_p, rollout.top_k, rollout.max_new_tokens),
        frozenset(edges_of(student.model, loaded.folder, data.folder, files).ends),
        frozenset(untaught.ids) | frozenset(beyond),
        rows_in_hand(
            longest_rollout(rollout, prompts.longest),
            bytes_per_token(student.model.config, student.compute_dtype),
        ),
        spec.seed,
        rollout.stale_steps,
    )


def rows_in_hand(longest: int, token_bytes: int) -> int:
    """Returns how many rows are written at a time, whose keys and values fit into 4 GiB.

    Args:
        longest: tokens of a prompt and its completion, at most.
        token_bytes: of the keys and values of a token.
    """
    tokens = min(_TOKENS_IN_HAND, _BYTES_IN_HAND // max(1, token_bytes))
    return max(1, tokens // longest)


def decoder_of(
    spec: RunSpec, roots: Roots, loaded: LoadedStudent, data: Data
) -> Callable[[Sequence[int]], str] | None:
    """Returns what decodes ids to text; None without a tokenizer."""
    path = _tokenizer_path(spec, roots, loaded, data)
    if path is None:
        return None
    reader, _ = complete_tokenizer(read_tokenizer_files(path), str(path))
    return lambda ids: str(reader.decode(list(ids), skip_special_tokens=False))


def _prompts(
    spec: RunSpec, roots: Roots, loaded: LoadedStudent, data: Data, prompt_tokens: int | None
) -> PromptSet:
    if prompt_tokens is not None:
        return prompts_of_rows(data.training, prompt_tokens)
    folder = prompts_folder(spec, roots)
    if folder is None:
        raise ValueError("the spec names no prompts")
    return open_prompt_set(folder, loaded.student.vocab_size, loaded.tokens)


def _tokenizer_path(spec: RunSpec, roots: Roots, loaded: LoadedStudent, data: Data) -> Path | None:
    """Returns the student's tokenizer, or that beside the data or the prompts; None without one."""
    folders = (loaded.folder, data.folder)
    prompts = prompts_folder(spec, roots)
    paths = [folder / TOKENIZER_NAME for folder in (*folders, prompts) if folder is not None]
    return next((path for path in paths if path.exists()), None)
