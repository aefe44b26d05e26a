"""Publishing to a hub on loopback through the real huggingface_hub, in a process of its own.

The hub here speaks LFS only, so these tests show as well that nothing is sent over Xet, which
huggingface_hub prefers if hf_xet is installed.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lectern_common.errors import (
    Conflict,
    CorruptData,
    HubUnavailable,
    InvalidRequest,
    InvalidSpec,
    NotFound,
    Unauthenticated,
)
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from student_trainer.stop import StopRequested
from tests.student_trainer.publishing.conftest import Finished
from tests.support.hub import Hub, serving
from tests.support.stage_child import StageChild, stage_child

EXPORTED = {
    "config.json",
    "distillation_metadata.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
ALL = EXPORTED | {"README.md", "LICENSE", "small-q8_0.gguf"}


@pytest.fixture(scope="module")
def child_and_hub(
    finished: Finished, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[StageChild, Hub]]:
    with serving() as hub:
        cache = tmp_path_factory.mktemp("hub-cache")
        environment = {**hub.environment(), "HF_HOME": str(cache)}
        with stage_child(finished.home.path, environment) as child:
            yield child, hub


@pytest.fixture
def child(child_and_hub: tuple[StageChild, Hub]) -> StageChild:
    return child_and_hub[0]


@pytest.fixture
def hub(child_and_hub: tuple[StageChild, Hub]) -> Iterator[Hub]:
    hub = child_and_hub[1]
    hub.repositories.clear()
    hub.stored.clear()
    hub.calls.clear()
    yield hub
    hub.part_bytes = None
    hub.breaks.clear()
    hub.alters.clear()


def published(child: StageChild, **asked: Any) -> dict[str, Any]:
    return child("publish", **{"run": "small", "to": "me/small", "upload": True, **asked})


def hashes(files: dict[str, bytes]) -> dict[str, str]:
    own = {name: content for name, content in files.items() if name != ".gitattributes"}
    return {name: hashlib.sha256(content).hexdigest() for name, content in own.items()}


def planned_hashes(result: dict[str, Any]) -> dict[str, str]:
    return {file["name"]: file["sha256"] for file in result["files"]}


def test_a_plan_lists_every_file_and_calls_no_hub(child, hub, finished):
    plan = published(child, upload=False)
    assert not hub.calls
    assert set(planned_hashes(plan)) == ALL
    for file in plan["files"]:
        if file["name"] in EXPORTED:
            content = (finished.run.export_path / file["name"]).read_bytes()
            assert file["bytes"] == len(content)
            assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert (
        plan["card"].encode()
        and hashlib.sha256(plan["card"].encode()).hexdigest() == (planned_hashes(plan)["README.md"])
    )
    assert (plan["uploaded"], plan["commit"], plan["verified"]) == (False, None, [])
    assert all(file["sha256"] in plan["markdown"] for file in plan["files"])
    assert plan["card"] in plan["markdown"]


def test_the_upload_is_exactly_the_plan_and_is_verified(child, hub):
    plan = published(child, upload=False)
    result = published(child, plan_sha256=plan["plan_sha256"])
    repository = hub.repositories["me/small"]
    assert hashes(repository.files) == planned_hashes(plan) == planned_hashes(result)
    assert result["plan_sha256"] == plan["plan_sha256"]
    assert result["uploaded"]
    assert result["commit"] == repository.commit_id(1)
    assert not repository.private
    assert any("9 files downloaded again" in fact for fact in result["verified"])
    assert any("AutoModelForCausalLM" in fact for fact in result["verified"])
    assert any("small-q8_0.gguf" in fact for fact in result["verified"])
    assert result["left"] == []


def test_large_files_are_sent_in_parts_and_privately_on_request(child, hub):
    hub.part_bytes = 20_000
    published(child, private=True)
    assert hub.repositories["me/small"].private
    assert hub.calls["upload"] > 4


def test_a_connection_that_breaks_during_an_upload_is_repeated(child, hub):
    hub.breaks["upload"] = 1
    result = published(child)
    assert hub.breaks["upload"] == 0
    assert hashes(hub.repositories["me/small"].files) == planned_hashes(result)


def test_a_connection_that_breaks_during_the_download_is_repeated(child, hub):
    hub.breaks["download"] = 1
    result = published(child)
    assert hub.breaks["download"] == 0
    assert result["uploaded"]


def test_a_commit_that_breaks_changes_nothing_and_the_same_request_goes_on(child, hub):
    hub.breaks["commit"] = 1
    with pytest.raises(HubUnavailable, match="run the same again") as broken:
        published(child)
    assert broken.value.retryable
    assert hub.repositories["me/small"].files == {}
    sent = hub.calls["upload"]
    result = published(child)
    assert hub.calls["upload"] == sent  # large files are there already
    assert hashes(hub.repositories["me/small"].files) == planned_hashes(result)


@pytest.mark.parametrize("stop_at", ["bytes sent", "files hashed"])
def test_a_stop_changes_nothing_and_the_same_request_goes_on(child, hub, stop_at):
    with pytest.raises(StopRequested):
        published(child, stop_at=stop_at)
    assert all(repository.files == {} for repository in hub.repositories.values())
    result = published(child)
    assert hashes(hub.repositories["me/small"].files) == planned_hashes(result)


def test_a_stop_while_it_is_verified_leaves_no_copy(child, hub, tmp_path):
    with pytest.raises(StopRequested):
        published(child, stop_at="files downloaded", work=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_bytes_that_are_sent(child, hub):
    result = published(child)
    large = ("model.safetensors", "small-q8_0.gguf")
    sent = [(done, of) for what, done, of in result["reported"] if what == "bytes sent"]
    assert sent == sorted(sent)
    made = ("README.md", "LICENSE")  # in memory
    total = sum(file["bytes"] for file in result["files"] if file["name"] not in made)
    assert {of for _, of in sent} == {total}
    assert sent[-1][0] >= sum(file["bytes"] for file in result["files"] if file["name"] in large)


def test_a_hub_that_cannot_be_reached_is_an_error_to_try_again(child, hub):
    hub.breaks["create"] = 1
    with pytest.raises(HubUnavailable, match="creating me/small"):
        published(child)


def test_publishing_twice_changes_nothing(child, hub):
    first = published(child)
    again = published(child)
    assert again["commit"] == first["commit"]
    assert len(hub.repositories["me/small"].commits) == 2


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_repository_that_holds_other_bytes_is_found_out(child, hub, name):
    original = published(child)
    content = bytearray(hub.repositories["me/small"].files[name])
    content[len(content) // 2] ^= 1
    hub.alters[name] = bytes(content)
    with pytest.raises(CorruptData, match=name):
        published(child)
    assert planned_hashes(original)[name]


def test_a_repository_with_other_files_is_left_as_it_is(child, hub):
    hub.add("me/small", {"pytorch_model.bin": b"theirs", "README.md": b"# Theirs"})
    with pytest.raises(Conflict, match=r"pytorch_model\.bin"):
        published(child)
    assert len(hub.repositories["me/small"].commits) == 1


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_that_is_not_as_private_is_left_as_it_is(child, hub, private):
    hub.add("me/small", {}, private=not private)
    with pytest.raises(Conflict, match="private"):
        published(child, private=private)
    assert len(hub.repositories["me/small"].commits) == 1


def test_a_plan_that_has_changed_is_not_uploaded(child, hub):
    with pytest.raises(Conflict, match="plan has changed"):
        published(child, plan_sha256="0" * 64)
    assert not hub.calls


def test_a_token_without_rights_is_said_so(child, hub):
    with pytest.raises(Unauthenticated, match="rights to create"):
        published(child, to="forbidden/small")


def test_what_is_no_run_no_name_or_another_licence_is_refused_before_any_call(child, hub):
    with pytest.raises(NotFound, match="no run nothing"):
        published(child, run="nothing")
    for to in ("small", "me/small/x", "../small", "me/", "me/sm all"):
        with pytest.raises(InvalidSpec):
            published(child, to=to)
    for run in ("..", "a/b", ""):
        with pytest.raises(InvalidSpec):
            published(child, run=run)
    with pytest.raises(InvalidRequest, match=r"under apache-2\.0"):
        published(child, license="mit")
    assert not hub.calls


def test_a_gguf_file_of_other_weights_is_not_published(child, hub, finished):
    stale = finished.run.gguf_path / "stale-f16.gguf"
    whole = (finished.run.gguf_path / "small-q8_0.gguf").read_bytes()
    digest = finished_digest(finished.run.export_path)
    stale.write_bytes(whole.replace(digest, b"0" * 64))
    try:
        with pytest.raises(CorruptData, match="stale-f16"):
            published(child)
    finally:
        stale.unlink()
    assert not hub.calls


def finished_digest(export: Path) -> bytes:
    return weights_sha256(safetensors_files(export)).encode()


def test_the_card_of_a_base_on_the_hub_says_the_licence(child, hub, finished):
    """The base is read at the commit that the run began with."""
    card = b"---\nlicense: other\nlicense_name: their-own\nlicense_link: LICENSE\n---\n"
    repository = hub.add("them/base", {"README.md": card, "LICENSE": b"Theirs."})
    commit = repository.commit_id(0)
    repository.commits.append({"README.md": b"---\nlicense: mit\n---\n"})
    result = child("publish", run=from_hub(finished, commit), to="me/other")
    assert "license: other\nlicense_name: their-own\nlicense_link: LICENSE\n" in result["card"]
    assert "base_model: them/base\n" in result["card"]
    assert planned_hashes(result)["LICENSE"] == hashlib.sha256(b"Theirs.").hexdigest()


def from_hub(finished: Finished, commit: str) -> str:
    """Makes a copy of the run whose student came from the hub; returns its id."""
    copy = finished.roots.runs / "from-hub"
    shutil.copytree(finished.run.path, copy)
    spec = (copy / "spec.yaml").read_text()
    (copy / "spec.yaml").write_text(spec.replace("init: base", "init: them/base"))
    path = copy / "export" / "distillation_metadata.json"
    metadata = json.loads(path.read_text()) | {"student_revision": commit}
    path.write_text(json.dumps(metadata))
    return "from-hub"
