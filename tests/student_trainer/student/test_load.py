"""Loading students: pinned, the same in every process, and trained in every tensor."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lectern_common.errors import Incompatible, NotFound
from lectern_common.run.folder import RunFolder
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_models.gguf_file import loaded_weights_sha256
from student_trainer.student.load import LoadedStudent, load_student
from tests.support.training.runs import Home, events_of, status_of, trained
from tests.support.training.wire_teacher import Serving, WireTeacher

torch.set_num_threads(1)

CPU = torch.device("cpu")
COMMITS = ("0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef")
LORA = {"rank": 2, "alpha": 8.0, "dropout": 0.1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.model("tied", tied=True, layers=3)
    home.model("untied", tied=False, layers=3)
    home.model("tied-config", tied=True, weights=False)
    home.model("untied-config", tied=False, weights=False)
    return home


def loaded(home: Home, begun: dict[str, Any] | None = None, **student: Any) -> LoadedStudent:
    student = {"config": None, **student}
    return load_student(home.spec("loaded", student=student), home.roots, CPU, begun)


def tensors_of(loaded: LoadedStudent) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loaded.student.state_dict().items()}


def export_of(folder: RunFolder) -> dict[str, Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder.export_path).named_parameters())


KINDS: dict[str, dict[str, Any]] = {
    "weights-tied": {"init": "tied"},
    "weights-untied": {"init": "untied"},
    "config-tied": {"config": "tied-config"},
    "config-untied": {"config": "untied-config"},
    "layers-tied": {"init": "tied", "keep_every_nth_layer": 2},
    "layers-untied": {"init": "untied", "keep_every_nth_layer": 2},
    "adapters-tied": {"init": "tied", "lora": LORA},
    "adapters-untied": {"init": "untied", "lora": LORA},
    "adapters-on-kept-layers": {"init": "untied", "keep_every_nth_layer": 2, "lora": LORA},
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_changes_every_trainable_tensor_and_the_export_carries_them(
    home: Home, kind: str
) -> None:
    """FALSIFY-TRAIN-001."""
    before = tensors_of(loaded(home, **KINDS[kind]))
    folder = home.run(
        student={"config": None, **KINDS[kind]}, schedule={"steps": 3, "warmup_steps": 0}
    )
    assert trained(home, folder) == 0
    (checkpoint,) = folder.checkpoints_path.glob("step-00000003")
    saved = load_file(checkpoint / "model.safetensors")
    for name, tensor in saved.items():
        assert not torch.equal(tensor, before[name]), name

    exported = export_of(folder)
    if "lora" not in KINDS[kind]:
        assert saved.keys() == {f"model.{name}" for name in exported}
        for name, tensor in exported.items():
            assert torch.equal(tensor, saved[f"model.{name}"]), name
        return
    assert all(".lora_" in name for name in saved)
    scale = LORA["alpha"] / LORA["rank"]
    for name, tensor in exported.items():
        layer = f"model.{name.removesuffix('.weight')}"
        if f"{layer}.lora_A.default.weight" not in saved:
            own = before.get(
                f"model.{name}", before.get(f"{layer.removesuffix('.bias')}.base_layer.bias")
            )
            assert own is not None and torch.equal(tensor, own), name
            continue
        product = saved[f"{layer}.lora_B.default.weight"] @ saved[f"{layer}.lora_A.default.weight"]
        assert torch.equal(tensor, before[f"{layer}.base_layer.weight"] + product * scale), name
    adapter = load_file(folder.export_path / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == len(saved)
    for name, tensor in saved.items():
        path = name.removeprefix("model.").replace(".default.", ".")
        assert torch.equal(adapter[f"base_model.model.{path}"], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_process_loads_the_same_student(home: Home, kind: str) -> None:
    """Nothing is written, so that several processes may load at the same time."""
    files = sorted(home.path.rglob("*"))
    one, other = loaded(home, **KINDS[kind]), loaded(home, **KINDS[kind])
    assert sorted(home.path.rglob("*")) == files
    assert one.initial_sha256 == other.initial_sha256
    assert one.facts == other.facts
    theirs = tensors_of(other)
    for name, tensor in tensors_of(one).items():
        assert torch.equal(tensor, theirs[name]), name


def test_the_initial_hash_is_that_of_the_weights_that_the_run_begins_with(home: Home) -> None:
    whole = weights_sha256(safetensors_files(home.path / "models" / "untied"))
    assert loaded(home, init="untied").initial_sha256 == whole
    assert loaded(home, init="untied", lora=LORA).initial_sha256 == whole
    cut = loaded(home, init="untied", keep_every_nth_layer=2)
    assert cut.initial_sha256 != whole
    cut.student.model.save_pretrained(home.path / "cut")
    assert cut.initial_sha256 == weights_sha256(safetensors_files(home.path / "cut"))
    drawn = loaded(home, config="tied-config")
    assert drawn.initial_sha256 == loaded_weights_sha256(drawn.student.model)
    assert len({cut.initial_sha256, drawn.initial_sha256, whole}) == 3


def test_facts_describe_how_the_student_was_made(home: Home) -> None:
    assert loaded(home, init="tied").facts == {"student_revision": None}
    cut = loaded(home, init="tied", keep_every_nth_layer=2, lora=LORA)
    assert cut.facts["kept_layers"] == [0, 2]
    assert cut.facts["lora"].items() > LORA.items()
    assert cut.facts["lora"]["parameters"] == sum(
        parameter.numel() for parameter in cut.student.parameters() if parameter.requires_grad
    )
    config = cut.student.adapters.tuner.peft_config["default"]  # type: ignore[union-attr]
    # The model that its adapters belong to is in no folder.
    assert config.base_model_name_or_path is None
    whole = loaded(home, init="tied", lora=LORA).student.adapters
    assert whole is not None
    assert whole.tuner.peft_config["default"].base_model_name_or_path == "tied"


def test_a_shallower_student_may_learn_from_the_model_it_was_cut_from(home: Home) -> None:
    digest = weights_sha256(safetensors_files(home.path / "models" / "untied"))
    with Serving(WireTeacher(weights_sha256=digest)) as serving:
        sections: dict[str, Any] = {
            "teacher": {"address": serving.address},
            "objective": {"alpha": 0.5},
            "schedule": {"steps": 1, "warmup_steps": 0},
        }
        ended = {}
        for kind in ("layers-untied", "weights-untied", "adapters-untied"):
            folder = home.run(student={"config": None, **KINDS[kind]}, **sections)
            trained(home, folder)
            ended[kind] = status_of(folder).reason
    assert ended == {
        "layers-untied": None,
        "weights-untied": "same_weights",
        "adapters-untied": "same_weights",
    }


@pytest.fixture
def hub(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a hub cache with someone/tiny at two commits; main is the first."""
    repository = tmp_path / "cache" / "models--someone--tiny"
    for seed, commit in enumerate(COMMITS):
        model = home.model("of-the-hub", seed=seed)
        (repository / "snapshots").mkdir(parents=True, exist_ok=True)
        model.rename(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[0])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return repository


def test_a_hub_id_is_pinned_to_its_commit_for_the_whole_run(home: Home, hub: Path) -> None:
    digests = [weights_sha256(safetensors_files(hub / "snapshots" / commit)) for commit in COMMITS]
    student = {"config": None, "init": "someone/tiny", "revision": "main"}
    folder = home.run(student=student, schedule={"steps": 2, "warmup_steps": 0})
    assert trained(home, folder) == 0

    (hub / "refs" / "main").write_text(COMMITS[1])
    spec = folder.read_spec()
    longer = spec.schedule.model_copy(update={"steps": 3})
    folder.write_spec(spec.model_copy(update={"schedule": longer}))
    # Nor does the resumed run use a folder of that name.
    appeared = home.model("someone/tiny", seed=9)
    assert trained(home, folder, resume=True) == 0
    shutil.rmtree(appeared)
    for event in events_of(folder, "assembled"):
        assert event["student_revision"] == COMMITS[0]
        assert event["initial_weights_sha256"] == digests[0]
    metadata = (folder.export_path / "distillation_metadata.json").read_text()
    assert f'"student_revision": "{COMMITS[0]}"' in metadata

    moved = loaded(home, init="someone/tiny", revision="main")
    pinned = loaded(home, init="someone/tiny", revision=COMMITS[0])
    assert [moved.initial_sha256, pinned.initial_sha256] == digests[::-1]
    assert (moved.facts, pinned.facts) == tuple(
        {"student_revision": commit} for commit in COMMITS[::-1]
    )
    with pytest.raises(NotFound, match="at v2"):
        loaded(home, init="someone/tiny", revision="v2")


def test_a_hub_id_is_never_a_folder_in_the_working_directory(
    home: Home, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "someone" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert loaded(home, init="someone/tiny").folder == hub / "snapshots" / COMMITS[0]


def test_adapters_are_not_resumed_on_other_weights(home: Home) -> None:
    folder = home.model("moving", seed=1)
    first = loaded(home, init="moving", lora=LORA)
    begun = {"initial_weights_sha256": first.initial_sha256, **first.facts}
    assert loaded(home, begun, init="moving", lora=LORA).facts == first.facts
    home.model("moving", seed=2)
    with pytest.raises(Incompatible, match="have changed since the run began"):
        loaded(home, begun, init="moving", lora=LORA)
    # Weights that are trained are replaced by the checkpoint.
    assert loaded(home, begun, init="moving").initial_sha256 == first.initial_sha256
    assert folder.is_dir()


def test_rows_longer_than_the_positions_are_refused(home: Home) -> None:
    spec = home.spec("long", student={"config": None, "init": "tied"}, data={"seq_len": 129})
    with pytest.raises(Incompatible, match="seq_len 129 exceeds the 128 positions"):
        load_student(spec, home.roots, CPU, None)
