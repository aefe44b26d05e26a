"""The card of a published student: its README.md, made of what is known and measured, only."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from lectern_common.spec.load import dump_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.words import counted, inert_name
from student_trainer.exporting.finished import FinishedRun
from student_trainer.publishing.licence import Base, Licence
from student_trainer.publishing.measured import VALIDATION_ROWS, Measurement
from student_trainer.student.exported_tokenizer import AUTO_TOKENIZER, FAST_TOKENIZER

CARD_NAME = "README.md"
# How a teacher was reached, and what the run's owner noted: nobody else's business.
_LEFT_OUT: Mapping[str, Sequence[str]] = {
    "": ("priority", "group", "tags", "notes", "report_to"),
    "teacher": ("address", "token_file", "tls_ca_file", "tls_cert_file", "tls_key_file"),
}


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of."""

    repository: str
    run: FinishedRun
    spec: RunSpec
    base: Base | None
    licence: Licence
    measured: Sequence[Measurement]
    gguf_files: Sequence[str]


def card_text(facts: CardFacts) -> str:
    """Returns README.md: front matter, how the student was made, what was measured, how to load
    it.
    """
    front = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)
    parts = [
        f"# {facts.repository.partition('/')[2]}",
        _origin(facts),
        _measured(facts.measured),
        _loading(facts),
        f"## Licence\n\n`{facts.licence.fields['license']}`. {facts.licence.why}",
        _spec(facts.spec),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    tags = ["lectern", *(["distillation"] if facts.spec.distils else [])]
    front: dict[str, Any] = {
        **facts.licence.fields,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [*tags, *(["gguf"] if facts.gguf_files else [])],
    }
    if facts.base is not None and facts.base.hub_id is not None:
        front |= {"base_model": facts.base.hub_id, "base_model_relation": "finetune"}
    if facts.measured:
        front["model-index"] = [_index(facts)]
    return front


def _index(facts: CardFacts) -> dict[str, Any]:
    """Returns the measurements in the form that the hub shows."""
    own = facts.spec.data.path or "random tokens"
    by_data: dict[str, list[Measurement]] = {}
    for one in facts.measured:
        by_data.setdefault(one.on, []).append(one)
    return {
        "name": facts.repository.partition("/")[2],
        "results": [
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": on, "type": own if on == VALIDATION_ROWS else on},
                "metrics": [
                    {"type": one.key, "name": one.what, "value": one.value} for one in found
                ],
            }
            for on, found in by_data.items()
        ],
    }


def _origin(facts: CardFacts) -> str:
    metadata, spec = facts.run.metadata, facts.spec
    began = "from scratch" if facts.base is None else f"from `{facts.base.name}`"
    if facts.base is not None and facts.base.revision is not None:
        began += f" at commit `{facts.base.revision}`"
    how = "trained on text alone, without a teacher"
    if spec.teacher is not None:
        how = f"distilled from `{metadata.get('teacher_model')}`"
    elif spec.teachers is not None:
        models = [f"`{one.get('teacher_model')}`" for one in metadata.get("teachers", {}).values()]
        how = f"distilled from {' and '.join(models)}, each on data of its own"
    rows = [
        ("Student", f"{began}; initial weights `{metadata.get('initial_weights_sha256')}`"),
        *_layers(metadata),
        *_teacher(facts),
        ("Data", _data(facts)),
        ("Objective", _objective(spec)),
        ("Training", _training(metadata)),
        ("Weights", f"`{facts.run.weights_sha256}` (SHA-256, rounded to bfloat16)"),
    ]
    table = "\n".join(f"| {name} | {text} |" for name, text in rows)
    return f"A language model {how}, with Lectern.\n\n| | |\n|---|---|\n{table}"


def _layers(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if metadata.get("kept_layers"):
        rows.append(("Layers kept", ", ".join(map(str, metadata["kept_layers"]))))
    if metadata.get("lora"):
        rows.append(("Adapters", f"`{json.dumps(metadata['lora'])}`, merged into the weights"))
    return rows


def _teacher(facts: CardFacts) -> list[tuple[str, str]]:
    metadata = facts.run.metadata
    if facts.spec.teachers is not None:
        return [
            (
                f"Teacher {name}",
                f"`{one.get('teacher_model')}`, fingerprint `{one.get('teacher_fingerprint')}`, "
                f"answers as `{facts.spec.teachers[name].representation}`",
            )
            for name, one in metadata.get("teachers", {}).items()
        ]
    if facts.spec.teacher is None:
        return []
    told = f"`{metadata.get('teacher_model')}`, fingerprint `{metadata.get('teacher_fingerprint')}`"
    return [("Teacher", f"{told}, answers as `{facts.spec.teacher.representation}`")]


def _data(facts: CardFacts) -> str:
    metadata, data = facts.run.metadata, facts.spec.data
    seen = counted(int(metadata.get("tokens_seen") or 0), "token")
    if data.sources is not None:
        parts = [
            f"`{source.path}` (weight {source.weight:g}, "
            + (f"teacher {source.teacher})" if source.teacher else "cross entropy only)")
            for source in data.sources
        ]
        return f"{', '.join(parts)}; {seen} in rows of {data.seq_len}"
    if data.path is None:
        return "random tokens"
    return (
        f"`{data.path}` (tokens' SHA-256 `{metadata.get('data_sha256')}`), {seen} in rows of "
        f"{data.seq_len}, {metadata.get('epoch')} epochs"
    )


def _objective(spec: RunSpec) -> str:
    objective = spec.objective
    if not spec.distils:
        return "cross entropy"
    loss = (
        f"{objective.alpha:g} x cross entropy + {1 - objective.alpha:g} x {objective.divergence} "
        f"at temperature {objective.temperature:g}"
    )
    if any(source.teacher is None for source in spec.data.sources or ()):
        return f"{loss}; of sources without a teacher cross entropy only"
    if spec.rollout is None:
        return loss
    share = "all" if spec.rollout.fraction == 1 else f"{spec.rollout.fraction:.0%} of the"
    return f"{loss}; the student wrote {share} rows itself, which have no cross entropy"


def _training(metadata: Mapping[str, Any]) -> str:
    step, made = metadata.get("step"), metadata.get("steps_made")
    of = "" if made in (None, step) else f" of {made}, the best by validation"
    return f"step {step}{of}, seed {metadata.get('seed')}"


def _measured(measured: Sequence[Measurement]) -> str:
    if not measured:
        return "## Results\n\nNothing was measured."
    rows = "\n".join(
        f"| {_cell(one.what)} | {_cell(one.on)} | {one.value:.6g} |" for one in measured
    )
    return f"## Results\n\n| measured | on | value |\n|---|---|---|\n{rows}"


def _cell(text: str) -> str:
    return inert_name(text).replace("|", "\\|")


def _loading(facts: CardFacts) -> str:
    repository = facts.repository
    loader = facts.run.metadata.get("tokenizer_loader")
    kind = "AutoTokenizer" if loader in (None, AUTO_TOKENIZER) else "PreTrainedTokenizerFast"
    text = (
        "## Loading\n\n```python\n"
        f"from transformers import AutoModelForCausalLM, {kind}\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{repository}")\n'
    )
    if loader in (AUTO_TOKENIZER, FAST_TOKENIZER):
        text += f'tokenizer = {loader}("{repository}")\n```'
    elif loader is not None:
        text += f"tokenizer = {loader}\n```"
    else:
        text = text.replace(f", {kind}", "") + "```"
    if kind != "AutoTokenizer":
        text += (
            "\n\n`AutoTokenizer` builds another tokenizer for this type of model, with other ids "
            "than the model was trained on."
        )
    for name in facts.gguf_files:
        text += f"\n\nWith llama.cpp: `llama-cli -hf {repository} --hf-file {name}`."
    return text


def _spec(spec: RunSpec) -> str:
    values = yaml.safe_load(dump_spec(spec))
    for section, names in _LEFT_OUT.items():
        part = values if not section else values.get(section)
        for name in names if isinstance(part, dict) else ():
            part.pop(name, None)
    for teacher in (values.get("teachers") or {}).values():
        for name in _LEFT_OUT["teacher"]:
            teacher.pop(name, None)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).strip()
    return (
        "## The run\n\nIts resolved spec, without how its teacher was reached and its owner's "
        f"labels:\n\n```yaml\n{text}\n```"
    )
