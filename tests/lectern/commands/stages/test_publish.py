"""`lectern export` and `lectern publish`, as processes of their own."""

import json
from pathlib import Path

import pytest

from tests.student_trainer.publishing.conftest import Finished, finished_in
from tests.support.hub import serving
from tests.support.stack import lectern


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_in(tmp_path_factory.mktemp("home"))


def run(home: Finished, *words: object, **options):
    return lectern(*words, "--home", home.home.path, **options)


@pytest.mark.long
def test_export_prints_the_file_and_publish_plans_it_and_uploads_exactly_that(
    home, tmp_path, monkeypatch
):
    done = run(home, "export", "small", "--format", "gguf", "--type", "f16")
    assert done.code == 0, done.err
    path = Path(done.out.split()[0])
    assert path == home.run.gguf_path / "small-f16.gguf"
    assert path.is_file()

    with serving() as hub:
        for name, value in {**hub.environment(), "HF_HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        done = run(home, "publish", "small", "--to", "me/small")
        assert done.code == 0, done.err
        assert not hub.calls
        assert "small-f16.gguf" in done.out
        assert "license: apache-2.0" in done.out
        digest = done.err.rpartition("--plan ")[2].partition("`")[0]
        done = run(
            home, "publish", "small", "--to", "me/small", "--yes", "--plan", digest, "--json"
        )
        assert done.code == 0, done.err
        result = json.loads(done.out)
        assert result["plan_sha256"] == digest
        files = {file["name"]: file["bytes"] for file in result["files"]}
        there = hub.repositories["me/small"].files
        assert files == {name: len(data) for name, data in there.items() if name in files}
        assert set(there) - set(files) == {".gitattributes"}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("export", "small", "--format", "onnx"), 2, "format"),
        (("export", "small", "--type", "f16"), 2, "type has no effect"),
        (("publish", "small", "--to", "small"), 2, "to"),
        (
            ("publish", "small", "--to", "me/small", "--license-file", "nowhere"),
            3,
            "no file nowhere",
        ),
        (("publish", "small", "--to", "me/small", "--plan", "0" * 64), 2, "plan_sha256"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_a_process_is_started(tmp_path, words, code, says):
    done = lectern(*words, "--home", tmp_path)
    assert done.code == code, done.err
    assert says in done.err
