"""What a spec names and cannot be used: refused with the field, never a fault of the server."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from control_plane.plane import ControlPlane
from lectern_common.checks.preflight import require_startable
from lectern_common.errors import CorruptData, InvalidSpec
from lectern_common.spec.load import parse_spec
from lectern_common.tokens.tokenizer_map import read_tokenizer_map, tokenizer_sha256
from tests.control_plane.conftest import serving, spec_body, wait_for
from tests.support.training.shards import write_shards

IDS = np.arange(400) % 90
CONTENTS = {
    "empty": b"",
    "not JSON": b'{"a": ',
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b'\xff\xfe{"a": 1}',
    "zeros": bytes(64),
    "deep": b"[" * 200_000,
    "half a character": b'{"\\ud800": "\\ud800"}',
    "a huge number": b'{"vocab_size": ' + b"9" * 5000 + b"}",
}


def replace(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def becomes_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    **{name: write(content) for name, content in CONTENTS.items()},
    "missing": Path.unlink,
    "a folder": becomes_a_folder,
    "a link to itself": lambda path: replace(path, path.name),
    "a link to nothing": lambda path: replace(path, "nothing"),
    "a link with a name too long": lambda path: replace(path, "n" * 255 + "/m"),
    "unreadable": lambda path: replace(path, "/proc/self/mem"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
}
# Still usable: what is not there is not needed, and these bytes are valid.
HARMLESS = {
    ("tokenizer_config.json", "missing"),
    ("tokenizer_config.json", "a link to itself"),
    ("tokenizer_config.json", "a link to nothing"),
    ("tokenizer_config.json", "a link with a name too long"),
    ("tokenizer_config.json", "a folder"),
    ("tokenizer_config.json", "unreadable"),
    ("tokenizer_config.json", "a huge number"),
    ("tokenizer.json", "missing"),
    ("tokenizer.json", "a link to itself"),
    ("tokenizer.json", "a link to nothing"),
    ("shard-00000.bin", "a huge number"),
    ("config.json", "half a character"),
    ("tokenizer.json", "a link with a name too long"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, ControlPlane]]:
    with serving(tmp_path_factory.mktemp("broken")) as (client, plane):
        model = plane.roots.models / "whole"
        write_model(model)
        write_shards(plane.roots.data / "whole", IDS)
        path = plane.roots.data / "whole" / "manifest.json"
        sha256 = tokenizer_sha256(read_tokenizer_map(model / "tokenizer.json"))
        manifest = json.loads(path.read_text()) | {"tokenizer_sha256": sha256}
        path.write_text(json.dumps(manifest))
        yield client, plane


def write_model(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    folder.mkdir()
    config = {"model_type": "qwen2", "vocab_size": 300, "hidden_size": 8, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    files = {"embed": "one.safetensors", "head": "two.safetensors"}
    for name, file in files.items():
        save_file({name: np.ones((4, 4), np.float32)}, str(folder / file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    words = {f"w{number}": number for number in range(300)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "w1"}')


def body(data: str = "whole", student: str = "whole", **more: Any) -> dict[str, Any]:
    return spec_body(student={"init": student}, data={"path": data, "seq_len": 8, **more})


def refused_field(client: Any, spec: dict[str, Any]) -> str:
    response = client.post("/runs", json=spec)
    assert response.status_code == 422, response.text
    [problem] = response.json()["errors"]
    assert problem["message"]
    return str(problem["field"])


def test_what_is_damaged_here_is_whole_at_first(shared):
    client, _ = shared
    assert client.post("/runs", json=body()).status_code == 202


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["manifest.json", "shard-00000.bin"])
def test_a_damaged_dataset_is_an_error_of_its_field(shared, name, damage):
    if (name, damage) in HARMLESS:
        pytest.skip("not damage")
    client, plane = shared
    broken = plane.roots.data / "broken"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(plane.roots.data / "whole", broken)
    DAMAGE[damage](broken / name)
    assert refused_field(client, body("broken")) == "data.path"
    assert refused_field(client, body(validation_path="broken")) == "data.validation_path"
    assert client.get("/datasets").status_code == 200


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "two.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_a_damaged_student_is_an_error_of_its_field(shared, name, damage):
    if (name, damage) in HARMLESS:
        pytest.skip("not damage")
    client, plane = shared
    broken = plane.roots.models / "broken"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(plane.roots.models / "whole", broken)
    DAMAGE[damage](broken / name)
    assert refused_field(client, body(student="broken")) == "student.init"
    if name == "config.json":
        config = spec_body(student={"config": "broken"})
        assert refused_field(client, config) == "student.config"
    assert client.get("/models").status_code == 200


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": ["F32"]},
        {"shape": "4"},
        {"shape": [-4, 4]},
        {"data_offsets": [64, 0]},
        {"data_offsets": [0, 63]},
        {"data_offsets": [0, 1 << 40]},
        {"data_offsets": [0]},
    ],
)
def test_impossible_tensors_are_an_error_of_the_student(shared, entry):
    client, plane = shared
    broken = plane.roots.models / "tensors"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(plane.roots.models / "whole", broken)
    whole = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    header = json.dumps({"head": whole | entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(64)
    (broken / "two.safetensors").write_bytes(content)
    assert refused_field(client, body(student="tensors")) == "student.init"


@pytest.mark.parametrize(
    "name", ["a\0b", "n" * 300, "/".join(["n" * 200] * 30), "../..", "/etc", "itself", "itself/a"]
)
def test_a_path_that_cannot_be_is_an_error_of_its_field(shared, name):
    client, plane = shared
    for root in (plane.roots.data, plane.roots.models):
        if not (root / "itself").is_symlink():
            (root / "itself").symlink_to("itself")
    assert refused_field(client, body(name)) == "data.path"
    assert refused_field(client, body(validation_path=name)) == "data.validation_path"
    assert refused_field(client, body(student=name)) == "student.init"
    assert refused_field(client, spec_body(student={"config": name})) == "student.config"


def test_the_command_line_is_told_the_same(shared):
    _, plane = shared
    with pytest.raises(InvalidSpec, match=r"data\.path: no dataset 'gone'"):
        require_startable(parse_spec(body("gone")), plane.roots)
    broken = plane.roots.data / "short"
    shutil.copytree(plane.roots.data / "whole", broken)
    DAMAGE["truncated"](broken / "shard-00000.bin")
    with pytest.raises(CorruptData) as caught:
        require_startable(parse_spec(body("short")), plane.roots)
    assert (caught.value.field, caught.value.http_status) == ("data.path", 422)
    assert CorruptData("a checkpoint").http_status == 500


def test_a_run_whose_dataset_was_removed_before_its_start_resumes_once_it_is_back(
    client: Any, plane: ControlPlane, processes: Any
) -> None:
    folder = write_shards(plane.roots.data / "mine", IDS)
    run = client.post(
        "/runs", json=spec_body("steady", data={"path": "mine", "kind": "shards", "seq_len": 16})
    ).json()
    wait_for(lambda: processes.started)
    shutil.move(folder, plane.roots.data.parent / "away")
    processes.last().say("failed", reason="not_found", message="data.path: no dataset 'mine'")
    processes.last().end(1)
    wait_for(lambda: client.get(f"/runs/{run['id']}").json()["state"] == "failed")
    resume = f"/runs/{run['id']}/resume"
    refused = client.post(resume)
    assert refused.status_code == 422
    assert [one["field"] for one in refused.json()["errors"]] == ["data.path"]
    assert "'mine'" in refused.json()["detail"]
    shutil.move(plane.roots.data.parent / "away", folder)
    assert client.post(resume).status_code == 202
    wait_for(lambda: len(processes.started) == 2)


def test_settings_that_do_not_fit_together_are_each_named(client: Any) -> None:
    refused = client.post("/runs", json=spec_body("steady", objective={"alpha": 0.5}))
    errors = refused.json()["errors"]
    assert [one["field"] for one in errors] == ["teacher", "objective.alpha"]
    assert errors[0]["message"] == errors[1]["message"]
    assert refused.json()["detail"].count("teacher is required") == 1


def test_a_wrong_query_parameter_is_refused_in_words_of_ours(client: Any) -> None:
    refused = client.get("/runs", params={"limit": "many", "state": "idle"})
    said = {one["field"]: one["message"] for one in refused.json()["errors"]}
    assert said["limit"] == "expected an integer, got 'many'"
    assert said["state.0"].startswith("expected 'queued', 'starting', ")
