"""A home with a run that has succeeded, its student's base model, and a GGUF file."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from student_trainer.exporting.gguf_export import write_gguf
from tests.support.training.runs import Home, trained

CARD = "---\nlicense: apache-2.0\ntags: [code]\n---\n# A base model\n"
LICENSE_TEXT = "The text of a licence.\n"


@dataclass(frozen=True)
class Finished:
    home: Home
    run: RunFolder

    @property
    def roots(self) -> Roots:
        return self.home.roots


def finished_in(path: Path) -> Finished:
    home = Home(path)
    home.tokenized("bytes")
    base = home.model(
        "base", architecture="llama", vocab_size=300, hidden=32, layers=2, tokenizer=True
    )
    (base / "README.md").write_text(CARD)
    (base / "LICENSE").write_text(LICENSE_TEXT)
    run = home.run(
        "small",
        student={"init": "base", "config": None},
        data={"path": "bytes", "seq_len": 16},
        notes="not for others",
    )
    assert trained(home, run) == 0
    write_gguf(run.export_path, run.gguf_path / "small-q8_0.gguf", "q8_0", name="small-q8_0")
    return Finished(home, run)


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Not to be changed by a test."""
    return finished_in(tmp_path_factory.mktemp("finished"))
