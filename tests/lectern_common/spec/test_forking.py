"""What a fork may change of a run's spec."""

from typing import Any

import pytest

from lectern_common.errors import InvalidSpec
from lectern_common.spec.forking import forked_spec
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec


def source(**sections: Any) -> RunSpec:
    body: dict[str, Any] = {
        "name": "coder",
        "teacher": {"address": "127.0.0.1:50051"},
        "student": {"init": "small", "lora": {"rank": 4}},
        "data": {"path": "code"},
        "schedule": {"steps": 100},
        "tags": ["first"],
    }
    return parse_spec({**body, **sections})


def problems(changes: dict[str, Any], step: int = 40, **sections: Any) -> dict[str, str]:
    with pytest.raises(InvalidSpec) as refused:
        forked_spec(source(**sections), changes, step)
    return dict(refused.value.problems)


def test_a_fork_without_changes_differs_only_in_its_name():
    spec = forked_spec(source(), {}, 40)
    assert spec.name == "coder-fork"
    assert spec.model_copy(update={"name": "coder"}) == source()


@pytest.mark.parametrize(
    ("name", "derived"),
    [("a", "a-fork"), ("x" * 63, "x" * 58 + "-fork"), ("y" * 57 + "-zzzzz", "y" * 57 + "-fork")],
)
def test_a_derived_name_is_a_name(name, derived):
    assert forked_spec(source(name=name), {}, 40).name == derived


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other", "seed": 7, "notes": "again", "tags": [], "group": "g", "priority": 5},
        {"schedule": {"steps": 41, "decay": "linear", "warmup_steps": 3, "final_fraction": 0.5}},
        {"optimizer": {"learning_rate": 1e-3, "betas": [0.8, 0.9], "weight_decay": 0}},
        {"objective": {"alpha": 0.9, "temperature": 4, "divergence": "jsd", "beta": 0.3}},
        {"evaluation": {"every_steps": 7, "patience": 3, "max_sequences": 9, "prompts": ["a"]}},
        {"checkpoint": {"every_steps": 5, "keep_last": 9, "keep_best": 0}},
        {"data": {"path": "other", "seq_len": 64, "validation_fraction": 0.2}},
        {"batch": {"sequences_per_step": 16, "micro_batch_sequences": 4}},
        {"teacher": {"address": "10.0.0.1:1", "representation": "top_k", "top_k": 8}},
        {"device": {"kind": "cpu", "count": 2, "threads": 1}, "report_to": ["tensorboard"]},
        {"student": {"dtype": "bfloat16"}},
        {"student": {"init": "small", "lora": {"rank": 4}}},  # as it is
    ],
)
def test_what_leaves_the_weights_meaningful_may_change(changes):
    spec = forked_spec(source(), changes, 40).model_dump(mode="json")
    for section, values in changes.items():
        given = values if isinstance(values, dict) else {"": values}
        for field, value in given.items():
            got = spec[section] if field == "" else spec[section][field]
            if isinstance(value, dict):
                got = {key: got[key] for key in value}
            assert got == value, (section, field)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"student": {"init": "large"}}, ["student.init"]),
        ({"student": {"config": "large"}}, ["student.config"]),
        ({"student": {"init": None, "config": "c"}}, ["student.init", "student.config"]),
        ({"student": {"revision": "main"}}, ["student.revision"]),
        ({"student": {"keep_every_nth_layer": 2}}, ["student.keep_every_nth_layer"]),
        ({"student": {"lora": None}}, ["student.lora"]),
        ({"student": {"lora": {"rank": 8}}, "seed": 3}, ["student.lora"]),
        ({"student": None}, ["student"]),
    ],
)
def test_the_student_may_not_change_and_each_field_says_what_to_do(changes, fields):
    found = problems(changes)
    assert list(found) == fields
    assert all("create a new run" in why for why in found.values())


def test_adapters_cannot_be_added_to_whole_weights():
    assert list(problems({"student": {"lora": {}}}, student={"init": "small"})) == ["student.lora"]


@pytest.mark.parametrize("steps", [40, 39, 1])
def test_a_fork_has_a_step_to_make(steps):
    found = problems({"schedule": {"steps": steps, "warmup_steps": 0}})
    assert found["schedule.steps"].endswith("set more than 40")
    assert "schedule.steps" in problems({}, step=100)
    assert forked_spec(source(), {"schedule": {"steps": 101}}, 100).schedule.steps == 101


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"optimizer": {"lr": 1e-4}}, "optimizer.lr"),
        ({"student": {"dtype": "float16"}}, "student.dtype"),
        ({"student": {"depth": 3}}, "student.depth"),
        ({"name": None}, "name"),
        ({"name": "No Name"}, "name"),
        ({"schedule": 5}, "schedule"),
        ({"nothing": {}}, "nothing"),
    ],
)
def test_what_is_no_setting_is_refused_by_name(changes, field):
    assert field in problems(changes)


@pytest.mark.parametrize(
    ("first", "changes", "then"),
    [
        (
            {"objective": {"alpha": 0.3, "temperature": 4, "divergence": "jsd"}},
            {"teacher": None, "objective": {"alpha": 1}},
            {"objective": {"temperature": 2.0, "divergence": "forward_kl", "beta": None}},
        ),
        (
            {"objective": {"divergence": "jsd", "beta": 0.3}},
            {"objective": {"divergence": "reverse_kl"}},
            {"objective": {"beta": None}},
        ),
        (
            {"teacher": {"representation": "top_k", "top_k": 8}},
            {"teacher": {"representation": "sampled"}},
            {"teacher": {"top_k": None, "num_draws": 50}},
        ),
        (
            {"batch": {"sequences_per_step": 8}},
            {"batch": {"sequences_per_step": 6}},
            {"batch": {"micro_batch_sequences": 6}},
        ),
        (
            {"batch": {"sequences_per_step": 8, "micro_batch_sequences": 2}},
            {"batch": {"sequences_per_step": 6}},
            {"batch": {"micro_batch_sequences": 2}},
        ),
        (
            {"data": {"path": "code", "validation_path": "held-out"}},
            {"data": {"validation_fraction": 0.2}},
            {"data": {"validation_path": None}},
        ),
        (
            {"data": {"path": "chats", "attention_across_documents": False, "long_chats": "cut"}},
            {"data": {"path": "text"}},
            {"data": {"attention_across_documents": None, "long_chats": None}},
        ),
        (
            {"data": {"path": "text", "attention_across_documents": True}},
            {"data": {"kind": "synthetic"}},
            {"data": {"path": None, "attention_across_documents": True}},
        ),
        (
            {"schedule": {"steps": 100, "final_fraction": 0.5}},
            {"schedule": {"decay": "constant"}},
            {"schedule": {"final_fraction": 0.1}},
        ),
        (
            {"device": {"count": 2, "max_restarts": 7}},
            {"device": {"count": 1}},
            {"device": {"max_restarts": None}},
        ),
        (
            {"device": {"count": 2, "max_restarts": 7}},
            {"device": {"count": 4}},
            {"device": {"max_restarts": 7}},
        ),
        (
            {"evaluation": {"prompts": ["a"]}},
            {"evaluation": {"prompts": []}},
            {"evaluation": {"prompt_tokens": None}},
        ),
    ],
)
def test_what_depends_on_a_changed_setting_gets_its_default_unless_it_is_given(
    first, changes, then
):
    spec = forked_spec(source(**first), changes, 40).model_dump()
    for section, values in then.items():
        assert {key: spec[section][key] for key in values} == values


@pytest.mark.parametrize(
    ("teacher", "changes", "after"),
    [
        ({"address": "a:1", "record_to": "kept"}, {}, {"address": "a:1", "record_to": None}),
        (
            {"address": "a:1", "record_to": "kept"},
            {"record_to": "other"},
            {"address": "a:1", "record_to": "other"},
        ),
        (
            {"address": "a:1", "record_to": "kept", "deadline_seconds": 9},
            {"record": "kept"},
            {"address": "", "record": "kept", "record_to": None},
        ),
        ({"record": "kept"}, {"address": "a:1"}, {"address": "a:1", "record": None}),
        ({"record": "kept"}, {}, {"record": "kept"}),
    ],
)
def test_a_fork_learns_from_a_server_or_a_record_and_keeps_none_for_its_source(
    teacher, changes, after
):
    spec = forked_spec(source(teacher=teacher), {"teacher": changes} if changes else {}, 40)
    assert spec.teacher is not None
    assert {name: getattr(spec.teacher, name) for name in after} == after
