"""Downloads a published repository again, compares every byte, and loads it as its card says."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lectern_common.errors import CorruptData
from lectern_common.stages.status import Report
from lectern_common.teacher.record.reader import file_sha256
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_models.gguf_file import GgufFile
from lectern_models.loading import load_causal_lm
from student_trainer.exporting.gguf_export import WEIGHTS_KEY, string_of
from student_trainer.publishing.hub import downloaded
from student_trainer.publishing.plan import Plan
from student_trainer.stop import Stop
from student_trainer.student.exported_tokenizer import AUTO_TOKENIZER, FAST_TOKENIZER
from student_trainer.student.same_ids import first_difference

_OF_THE_HUB = {".gitattributes"}
_OF_THE_CLIENT = ".cache/"


def verified(plan: Plan, commit: str, folder: Path, *, stop: Stop, report: Report) -> list[str]:
    """Returns what was verified of a commit, a sentence each.

    Args:
        plan: what was uploaded.
        commit: of the repository.
        folder: a new one, to download to.
        stop: ends it between files.
        report: told how many files are compared.

    Raises:
        CorruptData: the repository is not what was planned, or does not load.
        LecternError: the hub does not answer.
    """
    downloaded(plan.repository, commit, folder, stop=stop, report=report)
    _require_same_files(plan, folder, stop, report)
    found = [f"all {len(plan.files)} files downloaded again have the planned hashes"]
    load_causal_lm(folder)
    if weights_sha256(safetensors_files(folder)) != plan.run.weights_sha256:
        raise CorruptData(f"the weights of {plan.repository} are not those of the run")
    found.append("AutoModelForCausalLM loads it, with the run's weights")
    loader = plan.run.metadata.get("tokenizer_loader")
    if loader is not None:
        _require_tokenizer(folder, str(loader))
        found.append(f"{loader} gives the ids of tokenizer.json")
    for one in plan.gguf_files:
        if GgufFile(folder / one.name).tokens is None:
            raise CorruptData(f"{one.name} in {plan.repository} has no tokenizer")
        if string_of(folder / one.name, WEIGHTS_KEY) != plan.run.weights_sha256:
            raise CorruptData(f"{one.name} in {plan.repository} was made of other weights")
        found.append(f"{one.name} is whole and was made of the run's weights")
    return found


def _require_same_files(plan: Plan, folder: Path, stop: Stop, report: Report) -> None:
    planned = {one.name: one for one in plan.files}
    there = {
        name
        for path in folder.rglob("*")
        if path.is_file()
        and not (name := path.relative_to(folder).as_posix()).startswith(_OF_THE_CLIENT)
    }
    if there - _OF_THE_HUB != set(planned):
        raise CorruptData(
            f"{plan.repository} does not have the planned files: missing are "
            f"{sorted(set(planned) - there) or 'none'}, and there are also "
            f"{sorted(there - set(planned) - _OF_THE_HUB) or 'none'}"
        )
    for done, (name, one) in enumerate(sorted(planned.items())):
        stop.check()
        report("files compared", done, len(planned))
        if file_sha256(folder / name) != one.sha256:
            raise CorruptData(f"{name} in {plan.repository} is not what was uploaded")
    report("files compared", len(planned), len(planned))


def _require_tokenizer(folder: Path, loader: str) -> None:
    """Raises CorruptData unless the loader of the card gives the ids of tokenizer.json."""
    load: Any = AutoTokenizer.from_pretrained
    if loader != AUTO_TOKENIZER:
        load = PreTrainedTokenizerFast.from_pretrained
    try:
        if loader in (AUTO_TOKENIZER, FAST_TOKENIZER):
            tokenizer = load(str(folder), local_files_only=True, trust_remote_code=False)
        else:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / TOKENIZER_NAME))
        reference = Tokenizer.from_file(str(folder / TOKENIZER_NAME))
        differs = first_difference(tokenizer, reference, [])
    except Exception as error:  # whatever a tokenizer class raises, it does not load
        raise CorruptData(f"the published tokenizer does not load with {loader}: {error}") from None
    if differs is not None:
        raise CorruptData(f"the published tokenizer gives other ids for {differs!r}")
