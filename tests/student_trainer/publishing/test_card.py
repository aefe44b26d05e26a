"""The card, the licence and the measurements of a student: nothing that is not known."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lectern_common.errors import CorruptData, InvalidRequest, Misconfigured
from lectern_common.run.folder import RunFolder
from lectern_common.spec.load import parse_spec
from lectern_common.stages.evaluate import EvaluateRequest
from lectern_common.stages.folder import TaskFolder
from lectern_common.stages.publish import PublishRequest
from student_trainer.evaluating.stage import evaluate
from student_trainer.exporting.finished import FinishedRun, finished_run
from student_trainer.publishing.card import CardFacts, card_text
from student_trainer.publishing.licence import Base, Licence, base_of, licence_of
from student_trainer.publishing.measured import Measurement, measurements
from student_trainer.publishing.plan import planned
from student_trainer.stop import Stop, StopRequested
from tests.student_trainer.publishing.conftest import LICENSE_TEXT, Finished


@pytest.fixture
def own(finished: Finished) -> Iterator[FinishedRun]:
    """A copy of the run, to be changed."""
    copy = finished.roots.runs / "own"
    shutil.copytree(finished.run.path, copy)
    yield finished_run(finished.roots, "own")
    shutil.rmtree(copy)


def front_matter(card: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return values


def facts_of(run: FinishedRun, **changes: Any) -> CardFacts:
    spec = run.folder.read_spec()
    licence = Licence({"license": "mit"}, {}, "Given by its publisher.")
    facts = CardFacts("me/small", run, spec, None, licence, measurements(run), [])
    return replace(facts, **changes)


def asked(**fields: Any) -> PublishRequest:
    return PublishRequest(**{"run": "small", "to": "me/small", **fields})


def test_the_card_says_base_data_training_and_the_resolved_spec(own, finished):
    base = base_of(own.folder.read_spec(), own.metadata, finished.roots)
    card = card_text(facts_of(own, base=base))
    for expected in (
        "from `base`",
        own.metadata["initial_weights_sha256"],
        own.metadata["data_sha256"],
        "384 tokens in rows of 16",
        "step 6, seed 0",
        own.weights_sha256,
        "learning_rate: 0.01",
        'from_pretrained("me/small")',
    ):
        assert expected in card
    front = front_matter(card)
    assert front["license"] == "mit"
    assert "base_model" not in front  # a folder of this machine is no model of the hub
    assert front["tags"] == ["lectern"]


def test_the_card_of_a_distilled_student_names_teacher_and_objective_but_not_its_address(own):
    spec = parse_spec(
        {
            **own.folder.read_spec().model_dump(mode="json"),
            "teacher": {
                "address": "teacher.internal:50051",
                "token_file": "secret-name",
                "tls_ca_file": "ca-name",
            },
            "objective": {"alpha": 0.25, "temperature": 2.0},
            "group": "secret-group",
            "tags": ["secret-tag"],
        }
    )
    metadata = {**own.metadata, "teacher_model": "big/teacher", "teacher_fingerprint": "f00d"}
    card = card_text(facts_of(replace(own, metadata=metadata), spec=spec))
    assert "distilled from `big/teacher`" in card
    assert "fingerprint `f00d`, answers as" in card
    assert "0.25 x cross entropy + 0.75 x forward_kl at temperature 2" in card
    assert front_matter(card)["tags"] == ["lectern", "distillation"]
    for secret in ("internal", "secret", "ca-name", "not for others"):
        assert secret not in card


def test_the_card_names_each_of_several_teachers_but_no_address(own):
    values = own.folder.read_spec().model_dump(mode="json")
    sources = [{"path": "code", "weight": 3, "teacher": "coder"}, {"path": "web"}]
    spec = parse_spec(
        {
            **values,
            "teachers": {"coder": {"address": "teacher.internal:50051", "token_file": "secret"}},
            "data": {**values["data"], "kind": "shards", "path": None, "sources": sources},
            "objective": {"alpha": 0.25},
        }
    )
    known = {"teacher_model": "big/coder", "teacher_fingerprint": "f00d"}
    metadata = {**own.metadata, "teachers": {"coder": known}}
    card = card_text(facts_of(replace(own, metadata=metadata), spec=spec))
    for expected in (
        "distilled from `big/coder`, each on data of its own",
        "| Teacher coder | `big/coder`, fingerprint `f00d`, answers as `hidden` |",
        "`code` (weight 3, teacher coder), `web` (weight 1, cross entropy only)",
        "of sources without a teacher cross entropy only",
    ):
        assert expected in card
    assert "internal" not in card and "secret" not in card


def test_the_card_says_which_rows_the_student_wrote(own):
    for fraction, share in ((1, "wrote all rows"), (0.25, "wrote 25% of the rows")):
        spec = parse_spec(
            {
                **own.folder.read_spec().model_dump(mode="json"),
                "teacher": {},
                "objective": {"alpha": 0},
                "rollout": {"fraction": fraction, "prompt_tokens": 1},
            }
        )
        assert share in card_text(facts_of(own, spec=spec))


def test_a_base_on_the_hub_is_named_with_its_commit(own):
    base = Base("them/base", "them/base", "abc123", {"license": "mit"}, {})
    card = card_text(facts_of(own, base=base))
    assert front_matter(card)["base_model"] == "them/base"
    assert "from `them/base` at commit `abc123`" in card


def test_only_what_was_measured_is_on_the_card(own):
    metadata = {**own.metadata, "validation_kl": 0.125, "validation_top1_agreement": None}
    run = replace(own, metadata=metadata)
    card = card_text(facts_of(run))
    assert "| KL divergence from the teacher, nats a token | validation rows | 0.125 |" in card
    assert "Same likeliest token" not in card
    [index] = front_matter(card)["model-index"]
    [result] = index["results"]
    assert {one["type"]: one["value"] for one in result["metrics"]} == {
        "cross_entropy": own.metadata["validation_loss"],
        "kl": 0.125,
    }
    unmeasured = {key: None for key in metadata if key.startswith("validation_")}
    nothing = card_text(facts_of(replace(own, metadata={**metadata, **unmeasured})))
    assert "Nothing was measured." in nothing
    assert "model-index" not in front_matter(nothing)


def evaluated(of: FinishedRun, name: str, suites: dict[str, Any], **model: Any) -> Path:
    """Writes the task of an evaluation as `lectern evaluate` leaves it."""
    task = TaskFolder.create(of.folder.tasks_path / name, "evaluate", {"model": "own"})
    facts = {"words": "run own", "run": "own", "weights": "export", **model}
    request = {"code": {"problems": "humaneval"}}
    task.write_result({"model": facts, "suites": suites, "request": request})
    return task.result_path


def test_evaluations_of_the_export_are_on_the_card(own):
    evaluated(
        own,
        "first",
        {
            "perplexity": {"loss": 3.5, "perplexity": 33.1, "bits_per_byte": None, "data": "a set"},
            "agreement": {"kl": 0.5, "top1_agreement": 0.75, "calibration_error": 0.02},
            "code": {"pass_at_k": {"1": 0.25, "10": 0.5}, "problems": 164, "mode": "completion"},
            "lm_eval": {"tasks": {"hellaswag": {"acc": 0.3, "acc_norm": 0.31}}},
        },
    )
    [index] = front_matter(card_text(facts_of(own)))["model-index"]
    types = {one["dataset"]["name"]: one["dataset"]["type"] for one in index["results"]}
    assert types["validation rows"] == "bytes"
    assert types["a set"] == "a set"
    found = {(one.key, one.on): one.value for one in measurements(own)}
    code = "164 problems of humaneval, completion mode"
    assert found == {
        ("cross_entropy", "validation rows"): own.metadata["validation_loss"],
        ("cross_entropy", "a set"): 3.5,
        ("perplexity", "a set"): 33.1,
        ("kl", "held-out text"): 0.5,
        ("top1_agreement", "held-out text"): 0.75,
        ("calibration_error", "held-out text"): 0.02,
        ("pass@1", code): 0.25,
        ("pass@10", code): 0.5,
        ("acc", "lm-eval hellaswag"): 0.3,
        ("acc_norm", "lm-eval hellaswag"): 0.31,
    }


def test_what_lectern_evaluate_writes_is_on_the_card(own, finished, tmp_path):
    asked = {"model": "own", "suites": ["perplexity"]}
    result = evaluate(
        EvaluateRequest.model_validate(asked),
        finished.roots,
        tmp_path,
        stop=Stop(),
        report=lambda *_: None,
    )
    TaskFolder.create(own.folder.tasks_path / "one", "evaluate", asked).write_result(result)
    found = {one.key: one for one in measurements(own)}
    assert found["cross_entropy"].on == "validation rows"
    assert found["cross_entropy"].value == result["suites"]["perplexity"]["loss"]
    # The run measured the same on the same rows, so that it is there once.
    assert [one.key for one in measurements(own)].count("cross_entropy") == 1
    measured_by_run = own.metadata["validation_loss"]
    assert found["cross_entropy"].value == pytest.approx(measured_by_run, 1e-4)


def test_the_last_evaluation_counts_and_those_of_other_weights_do_not(own):
    def loss(value: float) -> dict[str, Any]:
        return {"perplexity": {"loss": value, "data": "a set"}}

    exported_at = (own.export / "distillation_metadata.json").stat().st_mtime
    for seconds, path in enumerate(
        (
            evaluated(own, "z-first", loss(1.0)),
            evaluated(own, "a-last", loss(2.0)),
            evaluated(own, "checkpoint", loss(3.0), weights=4),
            evaluated(own, "before", loss(4.0), weights="initial"),
            evaluated(own, "another", loss(5.0), run="another"),
            evaluated(own, "other-weights", loss(6.0), weights_sha256="0" * 64),
        )
    ):
        os.utime(path, (exported_at + seconds, exported_at + seconds))
    of_an_older_export = evaluated(own, "older", loss(7.0))
    os.utime(of_an_older_export, (exported_at - 1, exported_at - 1))
    evaluated(own, "broken", loss(8.0)).write_text("{")
    (own.folder.tasks_path / "empty").mkdir()
    TaskFolder.create(own.folder.tasks_path / "export", "export", {}).write_result(
        {"suites": loss(9.0), "model": {"run": "own", "weights": "export"}}
    )
    found = [one.value for one in measurements(own) if one.on == "a set"]
    assert found == [2.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "3.0", None, [1]])
def test_what_is_no_finite_number_is_not_on_the_card(own, value):
    metadata = {**own.metadata, "validation_loss": value}
    assert measurements(replace(own, metadata=metadata)) == []


def test_text_of_a_result_cannot_break_the_table(own):
    odd = Measurement("a | b\n# c", "key", 1.0, "d | e")
    card = card_text(facts_of(own, measured=[odd]))
    assert "| a \\| b\\n# c | d \\| e | 1 |" in card


def test_the_card_of_a_tokenizer_with_a_loader_of_its_own_says_which(own):
    fast = "PreTrainedTokenizerFast.from_pretrained"
    for loader, expected in (
        ("AutoTokenizer.from_pretrained", 'AutoTokenizer.from_pretrained("me/small")'),
        (fast, f'{fast}("me/small")'),
        (
            "PreTrainedTokenizerFast(tokenizer_file='tokenizer.json')",
            "tokenizer = PreTrainedTokenizerFast(tokenizer_file='tokenizer.json')",
        ),
    ):
        run = replace(own, metadata={**own.metadata, "tokenizer_loader": loader})
        card = card_text(facts_of(run, gguf_files=["small-f16.gguf"]))
        assert expected in card
        assert ("builds another tokenizer" in card) == (loader != "AutoTokenizer.from_pretrained")
        assert "--hf-file small-f16.gguf" in card


def test_the_licence_is_inherited_with_its_text(finished):
    metadata = finished_run(finished.roots, "small").metadata
    base = base_of(finished.run.read_spec(), metadata, finished.roots)
    licence = licence_of(asked(), base)
    assert licence.fields == {"license": "apache-2.0"}
    assert licence.files == {"LICENSE": LICENSE_TEXT.encode()}
    assert "Inherited from base" in licence.why
    assert licence_of(asked(license="apache-2.0"), base) == licence


def test_another_licence_than_the_inherited_one_is_refused():
    base = Base("base", None, None, {"license": "apache-2.0"}, {"LICENSE": b"text"})
    with pytest.raises(InvalidRequest, match=r"under apache-2\.0") as refused:
        licence_of(asked(license="mit"), base)
    assert refused.value.field == "license"
    with pytest.raises(InvalidRequest, match="inherits"):
        licence_of(asked(license="apache-2.0", license_text="mine"), base)


@pytest.mark.parametrize(
    ("base", "named"),
    [(None, "starts from no other model"), (Base("b", None, None, {}, {}), "the card of b")],
)
def test_nothing_is_published_without_a_licence(base, named):
    with pytest.raises(Misconfigured, match=named) as refused:
        licence_of(asked(), base)
    assert "--license" in str(refused.value)


def test_a_given_licence_takes_its_text_from_the_request_or_from_the_base():
    given = licence_of(asked(license="mit", license_text="mine"), None)
    assert (given.fields, given.files) == ({"license": "mit"}, {"LICENSE": b"mine"})
    base = Base("b", None, None, {}, {"LICENSE.txt": b"theirs"})
    assert licence_of(asked(license="mit"), base).files == {"LICENSE.txt": b"theirs"}
    other = licence_of(asked(license="other", license_text="mine"), None)
    assert other.fields["license_link"] == "LICENSE"
    with pytest.raises(InvalidRequest, match="without its text"):
        licence_of(asked(license="other"), None)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\n", {"license": "mit"}),
        ("---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}),
        ("---\nlicense: [mit]\n---\n", {"license": "mit"}),
        ("---\nlicense: [mit, apache-2.0]\n---\n", {}),
        ("---\nlicense_name: x\n---\n", {}),
        ("---\nlicense: {\n---\n", {}),
        ("---\n- a\n---\n", {}),
        ("# license: mit\n", {}),
        (None, {}),
    ],
)
def test_what_a_card_says_of_its_licence(finished, tmp_path, card, expected):
    roots = replace(finished.roots, models=tmp_path)
    (tmp_path / "base").mkdir()
    if card is not None:
        (tmp_path / "base" / "README.md").write_text(card, newline="")
    base = base_of(finished.run.read_spec(), {}, roots)
    assert base is not None
    assert base.fields == expected


def test_a_file_that_changes_after_the_plan_is_not_uploaded(own, finished):
    plan = planned(asked(run="own"), finished.roots, stop=Stop())
    plan.require_unchanged()
    path = own.export / "config.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(CorruptData, match=r"config\.json has changed"):
        plan.require_unchanged()


def test_weights_that_are_not_those_of_the_trainer_are_not_planned(own, finished):
    path = own.export / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(CorruptData, match="not those"):
        planned(asked(run="own"), finished.roots, stop=Stop())


def test_the_hash_of_a_plan_depends_on_all_that_is_uploaded(own, finished):
    def digest(**fields: Any) -> str:
        return planned(asked(run="own", **fields), finished.roots, stop=Stop()).sha256

    first = digest()
    assert digest() == first
    assert digest(private=True) != first
    assert digest(to="me/other") != first
    path = own.export / "distillation_metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "validation_loss": 1.5}))
    assert digest() != first


def test_a_stop_ends_a_plan(finished):
    stop = Stop()
    stop.request()
    with pytest.raises(StopRequested):
        planned(asked(), finished.roots, stop=stop)


def test_a_run_folder_names_the_place_of_gguf_files(tmp_path):
    assert RunFolder(tmp_path / "a").gguf_path == tmp_path / "a" / "gguf"
