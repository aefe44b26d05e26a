"""Checks that what a student may write fits into student and teacher. No torch.

Runs before a run is accepted, and again in the trainer.
"""

from pathlib import Path

from lectern_common.checks.compatibility import StudentFacts, require_data_fits
from lectern_common.checks.rules import why_no_prompt_set
from lectern_common.errors import Incompatible, InvalidSpec
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.rollout import RolloutSection
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.prompt_sets import PromptFacts, prompt_facts
from lectern_common.tokens.shards import MANIFEST_NAME, ShardManifest
from lectern_common.wire.formats import Widths
from lectern_common.words import counted
from protos import teacher_pb2


def examined_prompts(
    spec: RunSpec, roots: Roots, student: StudentFacts, manifest: ShardManifest | None
) -> tuple[PromptFacts | None, str]:
    """Returns what is known of the run's prompt set, and the sentence about its prompts.

    None means that the prompts are the beginnings of the rows of data.

    Args:
        spec: the run's, with what its data decides filled in.
        roots: what its paths are relative to.
        student: what is known of it.
        manifest: of the training data; None for synthetic data, or if it is unusable.

    Raises:
        InvalidSpec: there is no such prompt set, or rows of this data have no beginnings.
        LecternError: it is damaged, or of another tokenizer than the student's, or its prompts are
            too long for the student.
    """
    rollout = spec.rollout
    if rollout is None:
        raise ValueError("the spec has no rollouts")
    if rollout.prompts is None:
        longest = rollout.prompt_tokens or 0
        apart = spec.data.attention_across_documents is False
        why = why_no_beginnings(is_chats=manifest is not None and manifest.is_chats, apart=apart)
        if why is not None:
            raise InvalidSpec([("rollout.prompt_tokens", why)])
        require_rollout_positions(rollout, longest, student.max_positions)
        return None, f"the first {counted(longest, 'token')} of each row of data"
    folder = resolve_under(roots.data, rollout.prompts, "rollout.prompts")
    if not (folder / MANIFEST_NAME).exists():
        why = why_no_prompt_set(roots.data, rollout.prompts, folder)
        make = "(make one with `lectern data prepare --prompts`)"
        raise InvalidSpec([("rollout.prompts", f"{why} {make}")])
    facts = prompt_facts(folder)
    require_data_fits(folder, facts.manifest, student.tokens)
    require_rollout_positions(rollout, facts.longest, student.max_positions)
    return facts, (
        f"{rollout.prompts}: {counted(facts.count, 'prompt')}, the longest of "
        f"{counted(facts.longest, 'token')}"
    )


def why_no_beginnings(*, is_chats: bool, apart: bool) -> str | None:
    """Returns why the first tokens of rows are no prompts; None if they are.

    Args:
        is_chats: the rows hold chats.
        apart: documents in a row do not attend to each other.
    """
    if is_chats:
        return (
            "is for text, and the data holds chats; make prompts of them with `lectern data "
            "prepare --prompts --chat`, and name these in rollout.prompts"
        )
    if apart:
        return (
            "takes the first tokens of a row, which may be of several documents, but "
            "data.attention_across_documents false keeps these apart; set it to true, or name a "
            "prompt set in rollout.prompts"
        )
    return None


def prompts_folder(spec: RunSpec, roots: Roots) -> Path | None:
    """Returns the folder of the run's prompt set; None without one."""
    if spec.rollout is None or spec.rollout.prompts is None:
        return None
    return resolve_under(roots.data, spec.rollout.prompts, "rollout.prompts")


def longest_prompt(spec: RunSpec, prompts: PromptFacts | None) -> int | None:
    """Returns the tokens of a run's longest prompt; None without rollouts, or if it is unknown.

    Args:
        spec: the run's.
        prompts: what is known of its prompt set.
    """
    if spec.rollout is None:
        return None
    return spec.rollout.prompt_tokens or (None if prompts is None else prompts.longest)


def longest_rollout(rollout: RolloutSection, longest_prompt: int) -> int:
    """Returns the most tokens of a prompt and its completion."""
    return longest_prompt + rollout.max_new_tokens


def require_rollout_positions(
    rollout: RolloutSection, longest_prompt: int, max_positions: int | None
) -> None:
    """Raises Incompatible if rollouts may exceed the student's positions; None means no limit."""
    if max_positions is not None and longest_rollout(rollout, longest_prompt) > max_positions:
        raise Incompatible(
            f"{_length(rollout, longest_prompt)} exceeds the {max_positions} positions of the "
            f"student; {_way_out(rollout)}"
        )


def require_teacher_takes_rollouts(
    spec: RunSpec, longest_prompt: int, teacher: teacher_pb2.Model, vocab_size: int | None
) -> None:
    """Raises Incompatible if a rollout may exceed a limit of the teacher.

    Args:
        spec: a spec with rollouts.
        longest_prompt: in tokens.
        teacher: the answer of GetModel.
        vocab_size: the student's; None if unknown.
    """
    rollout, limits = spec.rollout, teacher.limits
    if rollout is None or spec.teacher is None:
        raise ValueError("the spec has no rollouts")
    most = min(limits.max_sequence_tokens, limits.max_tokens)
    if longest_rollout(rollout, longest_prompt) > most:
        raise Incompatible(
            f"{_length(rollout, longest_prompt)} exceeds the teacher's limit of {most} tokens per "
            f"sequence; {_way_out(rollout)}"
        )
    if vocab_size is None:
        return
    widths = Widths.of_model(teacher, min(vocab_size, teacher.logit_width))
    position_bytes = spec.teacher.asks_for.row_bytes(widths)
    if rollout.max_new_tokens * position_bytes > limits.max_reply_bytes:
        fit = limits.max_reply_bytes // position_bytes
        raise Incompatible(
            f"a completion of rollout.max_new_tokens {rollout.max_new_tokens} needs a reply of "
            f"{rollout.max_new_tokens * position_bytes} bytes of {spec.teacher.representation}, "
            f"over the teacher's limit of {limits.max_reply_bytes}; {fit} tokens fit: lower it, or "
            "choose another teacher.representation"
        )


def _length(rollout: RolloutSection, longest_prompt: int) -> str:
    if rollout.prompt_tokens is not None:
        return (
            f"rollout.prompt_tokens {longest_prompt} and rollout.max_new_tokens "
            f"{rollout.max_new_tokens}: a sequence of {longest_rollout(rollout, longest_prompt)} "
            "tokens"
        )
    return (
        f"rollout.max_new_tokens {rollout.max_new_tokens} after the longest prompt of "
        f"{rollout.prompts}, {longest_prompt} tokens,"
    )


def _way_out(rollout: RolloutSection) -> str:
    if rollout.prompt_tokens is not None:
        return "lower one of them"
    return "lower it, or prepare shorter prompts"
