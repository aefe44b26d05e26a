"""The sources of a spec, their teachers, and what does not go with them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from lectern_common.errors import InvalidSpec, SameWeights
from lectern_common.spec.changed import changed_settings
from lectern_common.spec.data import of_its_source
from lectern_common.spec.load import dump_spec, parse_spec
from lectern_common.spec.run_spec import resume_differences

SPEC: dict[str, Any] = {
    "name": "a",
    "student": {"config": "tiny"},
    "teachers": {"code": {"address": "127.0.0.1:1"}, "maths": {"record": "answers"}},
    "data": {
        "seq_len": 8,
        "sources": [
            {"path": "sets/code", "weight": 3, "teacher": "code"},
            {"path": "maths", "teacher": "maths", "name": "sums"},
            {"path": "plain"},
        ],
    },
}


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    spec = copy.deepcopy(SPEC)
    change(spec)
    return spec


def sources(spec: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = spec["data"]["sources"]
    return found


def test_a_source_is_named_by_its_folder_unless_it_has_a_name() -> None:
    spec = parse_spec(SPEC)
    assert [source.name for source in spec.data.sources or ()] == ["code", "sums", "plain"]
    assert spec.distils and spec.asks_server
    with pytest.raises(InvalidSpec, match="set name: the last part of path, 'a b', is not letters"):
        parse_spec(changed(lambda spec: sources(spec).append({"path": "sets/a b"})))


def test_each_source_is_the_spec_of_a_run_of_one() -> None:
    code, sums, plain = parse_spec(SPEC).by_source()
    assert (code.teacher and code.teacher.address) == "127.0.0.1:1"
    assert (sums.teacher and sums.teacher.record) == "answers"
    assert plain.teacher is None and plain.objective.alpha == 1
    assert [one.data.path for one in (code, sums, plain)] == ["sets/code", "maths", "plain"]
    assert code.objective.alpha == 0.3 and code.data.sources is None and code.teachers is None
    one = {**SPEC, "teachers": None, "data": {"path": "x"}, "teacher": {}}
    assert parse_spec(one).by_source() == [parse_spec(one)]


def test_a_spec_without_sources_is_as_it_was() -> None:
    spec = parse_spec({**SPEC, "teachers": None, "data": {"path": "x"}, "teacher": {}})
    assert spec.data.sources is None and list(spec.taught_by) == ["teacher"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda spec: sources(spec)[0].update(teacher="other"),
            "data.sources.0.teacher: is 'other', which is not one of teachers; there: code, maths",
        ),
        (lambda spec: sources(spec)[0].update(weight=0), "data.sources.0.weight: expected more"),
        (lambda spec: sources(spec)[0].update(weigth=2), "data.sources.0.weigth: unknown field"),
        (lambda spec: sources(spec).append({"path": "x/code"}), "two of sources have the name"),
        (lambda spec: spec["data"].update(path="x"), "data: set path or sources, not both"),
        (lambda spec: spec["data"].update(validation_path="x"), "validation_path has no effect"),
        (lambda spec: spec["data"].update(kind="synthetic"), "no effect with kind synthetic"),
        (lambda spec: spec.update(teacher={}), "set teacher or teachers, not both"),
        (lambda spec: spec["teachers"].update({"a.b": {}}), "teachers: must be letters, digits"),
        (lambda spec: spec["teachers"].update(more={}), "teachers.more: no source names the"),
        (lambda spec: spec["teachers"]["code"].update(adress=1), "teachers.code.adress: unknown"),
        (lambda spec: spec["teachers"]["code"].update(record_to="x"), "teachers.code.record_to"),
        (lambda spec: spec.update(objective={"alpha": 1}), "teachers has no effect with objective"),
        (lambda spec: spec.update(data={"path": "x"}), "teachers has no effect without data.sour"),
        (
            lambda spec: spec.update(rollout={"fraction": 0.5, "prompt_tokens": 3}),
            "rollout, data.sources: rollout does not go with data.sources",
        ),
        (
            lambda spec: (
                spec["teachers"]["code"].update(representation="sampled"),
                spec.update(objective={"divergence": "jsd"}),
            ),
            "teachers.code.representation sampled sends only the drawn ones",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(change: Any, said: str) -> None:
    with pytest.raises(InvalidSpec) as raised:
        parse_spec(changed(change))
    assert said in str(raised.value)


def test_teachers_are_required_if_the_run_distils() -> None:
    spec = changed(lambda spec: spec.pop("teachers"))
    for source in sources(spec):
        source.pop("teacher", None)
    with pytest.raises(InvalidSpec, match=r"teachers is required: objective\.alpha is 0.3"):
        parse_spec(spec)
    assert not parse_spec({**spec, "objective": {"alpha": 1}}).distils


def test_a_resume_may_move_a_teacher_but_not_change_the_set() -> None:
    old = parse_spec(SPEC)
    moved = changed(lambda spec: spec["teachers"]["code"].update(address="h:2", token_file="t"))
    assert resume_differences(old, parse_spec(moved)) == []
    asked = changed(lambda spec: spec["teachers"]["code"].update(representation="dense"))
    [(field, before, after)] = resume_differences(old, parse_spec(asked))
    assert (field, before, after) == ("teachers.code.representation", "hidden", "dense")
    weighed = changed(lambda spec: sources(spec)[0].update(weight=2))
    assert [field for field, *_ in resume_differences(old, parse_spec(weighed))] == ["data.sources"]

    def other(spec: dict[str, Any]) -> None:
        spec["teachers"]["c"] = spec["teachers"].pop("code")
        sources(spec)[0]["teacher"] = "c"

    found = [field for field, *_ in resume_differences(old, parse_spec(changed(other)))]
    assert found == ["teachers", "data.sources"]


def test_settings_of_a_teacher_count_as_changed_if_they_are_not_the_default() -> None:
    spec = parse_spec(changed(lambda spec: spec["teachers"]["code"].update(prefetch_steps=1)))
    found = changed_settings(spec.model_dump(mode="json"))
    assert found["teachers.code.prefetch_steps"] == 1
    assert "teachers.maths.prefetch_steps" not in found


def test_a_spec_is_read_back_as_it_was_written() -> None:
    spec = parse_spec(SPEC)
    assert parse_spec(yaml.safe_load(dump_spec(spec))) == spec


def test_errors_of_one_source_name_it_and_call_its_fields_as_the_spec_does() -> None:
    spec = parse_spec(SPEC)
    with pytest.raises(InvalidSpec) as raised, of_its_source(spec, 1):
        raise InvalidSpec([("data.path", "teacher.record is of data.path x, by the teacher")])
    assert raised.value.problems == [
        (
            "data.sources.1.path",
            "source sums: teachers.maths.record is of data.sources.1.path x, by the teacher",
        )
    ]
    said = r"source code: set teachers\.code\.allow_same_weights"
    with pytest.raises(SameWeights, match=said), of_its_source(spec, 0):
        raise SameWeights("set teacher.allow_same_weights")
