"""Finding models by name: folders, files and the hub's cache of commits, without a network."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._paths import filter_repo_objects

from lectern_common.errors import DiskFull, Misconfigured, NotFound
from lectern_models import model_folder
from lectern_models.model_folder import find_model, find_on_hub
from tests.support.models import write_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOOKUPS = [
    ("someone/tiny", "v1.0"),
    ("someone/tiny", COMMIT),
    ("someone/tiny", "v1.0", "tiny.gguf"),
    ("someone/tiny", "v2.0"),
    ("someone/tiny", COMMIT, "other.gguf"),
]


def test_a_folder_is_found_and_has_no_revision(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", weights=False)
    found = find_model(str(folder))
    assert (found.path, found.revision, found.gguf) == (folder, "", None)
    assert found.public_name == "model"
    with pytest.raises(Misconfigured, match="has no revision"):
        find_model(str(folder), "main")


@pytest.mark.parametrize("name", ["no/such/folder/here", "nobody/no-such-model"])
def test_an_unknown_name_is_not_found(name: str) -> None:
    with pytest.raises(NotFound, match=f"^student.init {name} is not a folder here, and "):
        find_model(name, field="student.init")


def test_a_name_is_searched_here_then_under_the_models_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, here = tmp_path / "models", tmp_path / "here"
    below = write_tiny_model(models / "team" / "small", weights=False)
    (models / "tiny.gguf").touch()
    here.mkdir()
    monkeypatch.chdir(here)
    found = find_model("team/small", models=models)
    assert (found.path, found.name, found.public_name) == (below, "team/small", "small")
    assert find_model("tiny.gguf", models=models).gguf_file == "tiny.gguf"
    near = write_tiny_model(here / "team" / "small", weights=False)
    assert find_model("team/small", models=models).path == near


def test_a_revision_means_the_hub_whatever_is_under_the_models_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small").mkdir()
    monkeypatch.setattr(model_folder, "snapshot_download", lambda *_, **__: "/hub/commit")
    found = find_model("small", "v1", models=tmp_path)
    assert (found.path, found.revision) == (Path("/hub/commit"), "commit")


def test_an_unknown_name_is_refused_with_a_similar_one(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny-teacher", weights=False)
    said = rf", nor under the models root \({tmp_path}\); did you mean tiny-teacher\?( And |$)"
    for name in ("tiny-techer", "tiny-teacher.gguf"):
        with pytest.raises(NotFound, match=said):
            find_model(name, models=tmp_path)
    with pytest.raises(NotFound) as refused:
        find_model("/gone/tiny-teacher", models=tmp_path)
    assert "models root (" not in str(refused.value)


def test_a_folder_that_is_not_a_model_is_refused_with_what_it_is(tmp_path: Path) -> None:
    for name, said in (
        ("notes.txt", r"has no config\.json: it is not a model folder"),
        ("tiny.gguf", r"has no config\.json; give the GGUF file itself: .*/tiny\.gguf"),
        ("manifest.json", r"is a dataset \(it has a manifest\.json of token shards\)"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(NotFound, match=f"^--model {tmp_path} {said}"):
            find_model(str(tmp_path))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RepositoryNotFoundError, "correct the name, or set HF_TOKEN"),
        (GatedRepoError, "is gated: ask for access"),
        (RevisionNotFoundError, "has no such revision"),
        (LocalEntryNotFoundError, "cannot be reached (nobody there): check the network"),
    ],
)
def test_each_refusal_of_the_hub_is_reported_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], said: str
) -> None:
    def refusing(*_: object, **__: object) -> str:
        response = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
        extra = {"response": response} if issubclass(error, HfHubHTTPError) else {}
        raise error("nobody there\nand more", **extra)

    monkeypatch.setattr("lectern_models.model_folder.snapshot_download", refusing)
    with pytest.raises(NotFound) as refused:
        find_on_hub("a/b", "v1", "student.init")
    assert str(refused.value).startswith("student.init a/b at v1 is not a folder here, and the ")
    assert said in str(refused.value)


def test_a_gguf_file_is_found_by_itself_and_in_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "tiny-q8_0.gguf"
    path.touch()
    for found in (find_model(str(path)), find_model(str(tmp_path), gguf_file=path.name)):
        assert (found.path, found.gguf_file) == (tmp_path, path.name)
        assert found.gguf is not None and found.gguf.path == path
        assert found.public_name == path.name


@pytest.mark.parametrize("name", ["../m.gguf", "/etc/m.gguf", "*.gguf", "m[0].gguf", "a/b.gguf"])
def test_a_gguf_file_is_a_name_not_a_path_or_pattern(tmp_path: Path, name: str) -> None:
    with pytest.raises(Misconfigured, match="is not a file name"):
        find_model(str(tmp_path), gguf_file=name)


def test_missing_files_and_conflicting_arguments_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(NotFound, match="no file"):
        find_model(str(path))
    with pytest.raises(NotFound, match=r"has no file model\.gguf"):
        find_model(str(tmp_path), gguf_file="model.gguf")
    path.touch()
    with pytest.raises(Misconfigured, match="is a GGUF file itself"):
        find_model(str(path), gguf_file="other.gguf")
    with pytest.raises(Misconfigured, match="has no revision main"):
        find_model(str(path), "main")


@pytest.fixture(scope="module")
def from_hub(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Returns [folder, commit, public name] or [error] of each of LOOKUPS in a hub cache.

    Found by one process of its own: the hub's library reads its settings once.
    """
    cache = tmp_path_factory.mktemp("cache")
    repository = cache / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1.0").write_text(COMMIT)
    snapshot = write_tiny_model(repository / "snapshots" / COMMIT)
    (snapshot / "tiny.gguf").touch()
    program = (
        "import json, sys\n"
        "from lectern_models.model_folder import find_model\n"
        "for lookup in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        found = find_model(*lookup)\n"
        "        print(json.dumps([found.path.name, found.revision, found.public_name]))\n"
        "    except Exception as error:\n"
        "        print(json.dumps([f'{type(error).__name__}: {error}']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(LOOKUPS)],
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_tag_is_resolved_to_its_commit(from_hub: list[list[str]]) -> None:
    assert from_hub[0] == from_hub[1] == [COMMIT, COMMIT, "someone/tiny"]


def test_a_gguf_file_of_the_hub_is_named_with_its_model(from_hub: list[list[str]]) -> None:
    assert from_hub[2] == [COMMIT, COMMIT, "someone/tiny/tiny.gguf"]


def test_a_missing_revision_or_file_is_not_found(from_hub: list[list[str]]) -> None:
    assert from_hub[3][0].startswith(
        "NotFound: --model someone/tiny at v2.0 is not a folder here, and the hub cannot be "
        "reached ("
    )
    assert from_hub[4] == ["NotFound: someone/tiny has no file other.gguf"]


def test_a_hub_model_that_does_not_fit_on_disk_is_a_full_disk_not_a_network_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(model_folder, "snapshot_download", full)
    with pytest.raises(DiskFull, match=r"--model someone/tiny: no space left .* HF_HOME"):
        find_model("someone/tiny")


def test_all_kinds_of_tokenizer_files_come_from_the_hub_and_no_other_subfolder() -> None:
    wanted = [
        *("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "merges.txt"),
        *("tokenizer.model", "tokenizer.model.v3", "qwen.tiktoken", "spiece.model", "source.spm"),
        *("chat_template.jinja", "additional_chat_templates/tool_use.jinja", "tekken.json"),
    ]
    others = [
        *("original/params.json", "original/tokenizer.model", "onnx/model.safetensors"),
        *("pytorch_model.bin", "modeling.py", "consolidated.safetensors", "a/b/vocab.txt"),
    ]
    taken = filter_repo_objects(
        [*wanted, *others],
        allow_patterns=model_folder._HUB_FILES,
        ignore_patterns=model_folder._HUB_FILES_NOT,
    )
    assert list(taken) == wanted
