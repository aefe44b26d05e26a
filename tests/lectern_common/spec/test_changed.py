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


def test_what_the_spec_decides_by_itself_is_not_listed_and_what_was_set_is() -> None:
    smallest = {"student.init": "some/model", "data.path": "some-data"}
    assert changed() == smallest
    several = changed(
        teacher={"representation": "top_k"},
        objective={"divergence": "jsd"},
        schedule={"steps": 30},
        batch={"sequences_per_step": 4},
        evaluation={"prompts": ["one"]},
        device={"count": 2},
    )
    assert several == {
        **smallest,
        "teacher.representation": "top_k",
        "objective.divergence": "jsd",
        "schedule.steps": 30,
        "batch.sequences_per_step": 4,
        "evaluation.prompts": ["one"],
        "device.count": 2,
    }
    set_by_hand = changed(
        teacher={"representation": "top_k", "top_k": 8},
        schedule={"warmup_steps": 3},
        batch={"micro_batch_sequences": 2},
        data={"path": "some-data", "validation_fraction": 0.2},
    )
    assert (
        set_by_hand.items()
        >= {
            "teacher.top_k": 8,
            "schedule.warmup_steps": 3,
            "batch.micro_batch_sequences": 2,
            "data.validation_fraction": 0.2,
        }.items()
    )


def test_what_the_data_decides_is_listed_only_if_it_was_set_otherwise() -> None:
    text = {"path": "some-data", "attention_across_documents": True}
    chats = {"path": "some-data", "attention_across_documents": False, "long_chats": "cut"}
    for data in (text, chats):
        assert changed(data=data).keys() == {"student.init", "data.path"}
    apart = changed(data={**text, "attention_across_documents": False})
    assert apart["data.attention_across_documents"] is False
    assert changed(data={**chats, "long_chats": "drop"})["data.long_chats"] == "drop"


def test_every_setting_that_a_spec_fills_in_by_itself_is_known_to_be_one() -> None:
    for sections in (
        {},
        {"teacher": {"representation": "top_k"}},
        {"teacher": {"representation": "sampled"}},
        {"objective": {"divergence": "jsd"}},
        {"evaluation": {"prompts": ["one"]}},
        {"device": {"count": 2}},
        {"data": {"kind": "synthetic"}},
    ):
        given = {**SMALLEST, **sections}
        paths = {f"{name}.{key}" for name, part in given.items() if name != "name" for key in part}
        assert changed(**sections).keys() <= paths
