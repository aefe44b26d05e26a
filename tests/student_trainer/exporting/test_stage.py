"""The stage `export`, on a run that was trained here."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lectern_common.errors import Conflict, CorruptData, DiskFull, InvalidSpec, NotFound
from lectern_common.roots import Roots
from lectern_common.stages.requests import parse_request
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_models.gguf_file import GgufFile
from lectern_models.loading import load_causal_lm
from student_trainer.exporting import gguf_export
from student_trainer.exporting.stage import export
from student_trainer.stop import Stop, StopRequested
from tests.support.training.runs import Home, trained


@pytest.fixture(scope="module")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.tokenized("bytes")
    home.model("llama", architecture="llama", vocab_size=300, hidden=32, tokenizer=True)
    run = home.run(
        "small", student={"init": "llama", "config": None}, data={"path": "bytes", "seq_len": 16}
    )
    assert trained(home, run) == 0
    return home


@pytest.fixture
def roots(trained_home: Home, tmp_path: Path) -> Roots:
    """A copy of the home."""
    shutil.copytree(trained_home.path, tmp_path / "home")
    return Roots.of_home(tmp_path / "home")


def exported(roots: Roots, *, stop: Stop | None = None, **asked: Any) -> dict[str, Any]:
    request = parse_request("export", {"run": "small", **asked})
    work = roots.runs / "work"
    work.mkdir(exist_ok=True)
    said: list[tuple[str, int, int]] = []
    result = export(
        request,  # type: ignore[arg-type]
        roots,
        work,
        stop=stop or Stop(),
        report=lambda *one: said.append(one),
    )
    json.dumps(result, allow_nan=False)
    return result


def test_safetensors_without_an_output_are_the_runs_own_export(roots):
    before = {path: path.read_bytes() for path in roots.runs.rglob("*") if path.is_file()}
    result = exported(roots)
    assert (result["root"], result["folder"]) == ("runs", "small/export")
    assert {file["name"] for file in result["files"]} >= {"config.json", "model.safetensors"}
    assert result["gguf"] is None
    after = {path: path.read_bytes() for path in roots.runs.rglob("*") if path.is_file()}
    assert after == before


def test_safetensors_with_an_output_are_a_model_that_a_run_may_start_from(roots):
    result = exported(roots, output="students/small")
    assert (result["root"], result["folder"]) == ("models", "students/small")
    folder = roots.models / "students" / "small"
    load_causal_lm(folder)
    assert weights_sha256(safetensors_files(folder)) == result["weights_sha256"]


@pytest.mark.parametrize("asked", [{}, {"type": "f16"}, {"type": "q8_0"}], ids=str)
def test_gguf_goes_where_publish_finds_it(roots, asked):
    result = exported(roots, format="gguf", **asked)
    kind = asked.get("type", "f16")
    assert result["type"] == kind
    assert (result["root"], result["folder"]) == ("runs", "small/gguf")
    path = roots.runs / "small" / "gguf" / f"small-{kind}.gguf"
    assert [file["name"] for file in result["files"]] == [path.name]
    assert result["files"][0]["bytes"] == path.stat().st_size == result["gguf"]["num_bytes"]
    assert result["files"][0]["sha256"] == result["gguf"]["sha256"]
    assert len(GgufFile(path).tokens or {}) > 256
    assert 0 < result["gguf"]["largest_error"] < 0.01
    assert result["files"][0]["sha256"] in result["markdown"]
    again = exported(roots, format="gguf", **asked)
    assert again["files"] == result["files"]


def test_gguf_with_an_output_is_named_after_it(roots):
    result = exported(roots, format="gguf", output="mine")
    assert [file["name"] for file in result["files"]] == ["mine-f16.gguf"]
    load_causal_lm(roots.models / "mine", gguf_file="mine-f16.gguf")


@pytest.mark.parametrize("format_name", ["safetensors", "gguf"])
def test_an_output_that_exists_is_left_as_it_is(roots, format_name):
    with pytest.raises(Conflict, match="there is a llama"):
        exported(roots, format=format_name, output="llama")


def test_a_run_that_is_not_there_or_not_finished_is_refused(roots):
    with pytest.raises(NotFound, match="no run nothing"):
        exported(roots, run="nothing")
    shutil.rmtree(roots.runs / "small" / "export")
    with pytest.raises(Conflict, match="no export yet"):
        exported(roots)


@pytest.mark.parametrize("format_name", ["safetensors", "gguf"])
def test_an_export_that_was_changed_is_refused(roots, format_name):
    path = roots.runs / "small" / "export" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(CorruptData, match="not those"):
        exported(roots, format=format_name)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"format": "onnx"}, "format"),
        ({"format": "gguf", "type": "q4_K"}, "type"),
        ({"type": "f16"}, ""),
        ({"output": "../mine"}, "output"),
        ({"output": "/mine"}, "output"),
        ({"run": "../small"}, "run"),
        ({"run": "a/b"}, "run"),
        ({"run": ""}, "run"),
        ({"quality": 3}, "quality"),
    ],
    ids=str,
)
def test_a_request_that_cannot_work_names_its_field(roots, asked, field):
    with pytest.raises(InvalidSpec) as refused:
        exported(roots, **asked)
    assert [name for name, _ in refused.value.problems] == [field]


@pytest.mark.parametrize("asked", [{"format": "gguf"}, {"output": "mine"}], ids=str)
def test_a_stop_leaves_nothing(roots, asked):
    stop = Stop()
    stop.request()
    with pytest.raises(StopRequested):
        exported(roots, stop=stop, **asked)
    assert not (roots.models / "mine").exists()
    assert not list(roots.runs.rglob("*.gguf"))


def test_a_full_disk_leaves_nothing_and_says_so(roots, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf_export, "_write_tensors", full)
    listed: list[dict[str, Any]] = [{}, {"output": "mine"}]
    for asked in listed:
        with pytest.raises(DiskFull, match="GGUF file") as error:
            exported(roots, format="gguf", **asked)
        assert error.value.retryable
    assert not list(roots.runs.rglob("*.gguf*"))
    assert not (roots.models / "mine").exists()
