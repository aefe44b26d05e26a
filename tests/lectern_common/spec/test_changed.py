"""The settings of a run that differ from the defaults."""

from lectern_common.spec.changed import changed_settings
from lectern_common.spec.load import parse_spec

SMALLEST = {
    "name": "small",
    "teacher": {"address": "127.0.0.1:50051"},
    "student": {"init": "some/model"},
    "data": {"path": "some-data"},
}


def changed(**sections) -> dict:
    return changed_settings(parse_spec({**SMALLEST, **sections}).model_dump(mode="json"))


def test_what_every_run_must_set_is_always_there_and_no_default_is() -> None:
    found = changed()
    assert found["student.init"] == "some/model"
    assert found["data.path"] == "some-data"
    for default in (
        "optimizer.learning_rate",
        "optimizer.betas",
        "teacher.address",
        "seed",
        "name",
    ):
        assert default not in found


def test_a_changed_setting_of_any_depth_has_its_dotted_path() -> None:
    found = changed(
        student={"init": "some/model", "lora": {"rank": 8}},
        optimizer={"betas": [0.9, 0.99]},
        evaluation={"prompts": ["one"]},
        seed=7,
    )
    expected = {
        "student.lora.rank": 8,
        "optimizer.betas": [0.9, 0.99],
        "evaluation.prompts": ["one"],
        "seed": 7,
    }
    assert found.items() >= expected.items()
    assert "student.lora.alpha" not in found  # 32 is its default


def test_a_spec_of_another_release_keeps_its_unknown_settings() -> None:
    assert changed_settings({"seed": 0, "old": {"way": 3}}) == {"old.way": 3}
    assert changed_settings({}) == {}
