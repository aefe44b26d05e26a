"""Several processes, some of them killed, write the same bytes and repeat no work."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from lectern_common.errors import Conflict, CorruptData, LecternError
from lectern_data.chats import chats
from lectern_data.prepare import prepare
from lectern_data.read.rows import Content
from lectern_data.read.scan import scan
from lectern_data.settings import PrepareSettings
from lectern_data.tokens import piece_worker, tokenizing
from lectern_data.tokens.encoder import Encoder, EncoderFiles
from lectern_data.tokens.pieces import Piece, cut
from lectern_data.tokens.tokenizer import train_tokenizer
from lectern_data.tokens.tokenizing import tokenize
from tests.support.chat_files import CHATML, chats_with_tokenizer

PIECE_BYTES = 2000
PROGRAM = """
import sys
from pathlib import Path
from lectern_data.prepare import prepare
from lectern_data.settings import PrepareSettings

def tell(stage, done, total):
    print(stage, done, flush=True)
    if stage == "tokenizing" and done >= int(sys.argv[3]):
        sys.stdin.readline()  # until killed

settings = PrepareSettings(
    [Path(sys.argv[1])], Path(sys.argv[2]), tokenizer=Path(sys.argv[1]) / "../tokenizer",
    validation_fraction=0.2, workers=2, piece_bytes=2000)
prepare(settings, on_progress=tell)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files of about 1,000 bytes, and a tokenizer beside them."""
    folder = tmp_path_factory.mktemp("inputs") / "corpus"
    folder.mkdir()
    for number in range(40):
        lines = [f"def function_{number}_{line}(a): return a * {line}\n" for line in range(25)]
        (folder / f"file_{number:02d}.py").write_text("".join(lines))
    tokenizer = folder.parent / "tokenizer"
    tokenizer.mkdir()
    texts = (path.read_text() for path in sorted(folder.iterdir()))
    for name, content in train_tokenizer(texts, 300).files.items():
        (tokenizer / name).write_bytes(content)
    return folder


def prepared(corpus: Path, output: Path, workers: int) -> dict[str, bytes]:
    """All written files, by name in the folder of `output`."""
    prepare(
        PrepareSettings(
            [corpus],
            output,
            tokenizer=corpus.parent / "tokenizer",
            validation_fraction=0.2,
            workers=workers,
            piece_bytes=PIECE_BYTES,
        )
    )
    return tree(output.parent)


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def pieces_of(corpus: Path, folder: Path | None = None) -> tuple[list[Piece], EncoderFiles]:
    """The pieces of `folder` (the corpus), with the corpus's tokenizer."""
    files = EncoderFiles(corpus.parent / "tokenizer/tokenizer.json", Content(), None, {})
    documents, _ = scan([(path.name, path) for path in sorted((folder or corpus).iterdir())])
    return list(cut(documents, files.sha256(), PIECE_BYTES)), files


def test_any_number_of_processes_writes_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    alone = prepared(corpus, tmp_path / "1/data", workers=1)
    assert prepared(corpus, tmp_path / "3/data", workers=3) == alone
    assert "data-validation/documents.bin" in alone


def test_after_a_kill_it_continues_and_writes_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    """S13: kill -9 of the main process."""
    undisturbed = prepared(corpus, tmp_path / "undisturbed/data", workers=1)
    output = tmp_path / "killed/data"
    command = [sys.executable, "-c", PROGRAM, str(corpus), str(output), "20"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        done = 0
        for line in child.stdout:
            stage, _, number = line.partition(" ")
            if stage == "tokenizing":
                done = int(number)
            if done >= 20:
                break
        workers = psutil.Process(child.pid).children()
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=60)[1]
    work = output.parent / ".data.work"
    pieces = sorted(work.glob("*.piece"))
    assert len(pieces) >= 6 and not output.exists()
    for path in pieces[5:]:  # on a busy machine all are made before the kill
        path.unlink()
    made = {path.name: path.stat().st_mtime_ns for path in pieces[:5]}
    times = []

    def look(stage: str, done: int, total: int) -> None:
        if stage == "tokenizing":
            times.append({path.name: path.stat().st_mtime_ns for path in work.glob("*.piece")})

    prepare(
        PrepareSettings(
            [corpus],
            output,
            tokenizer=corpus.parent / "tokenizer",
            validation_fraction=0.2,
            workers=1,
            piece_bytes=PIECE_BYTES,
        ),
        on_progress=look,
    )
    assert {name: time for name, time in times[-1].items() if name in made} == made
    assert len(times[-1]) > len(made)
    assert tree(output.parent) == undisturbed


def test_a_killed_process_is_restarted(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S13: kill -9 of a worker while the others go on."""
    pieces, files = pieces_of(corpus)
    started = collected_processes(monkeypatch)
    events: list[str] = []
    first = threading.Event()

    def on_done(piece: Piece) -> None:
        if not first.is_set():
            first.set()
            os.kill(started[0].pid, signal.SIGKILL)

    tokenize(pieces, files, tmp_path, 2, on_done, events.append)
    assert all((tmp_path / f"{piece.name}.piece").exists() for piece in pieces)
    assert [event for event in events if "SIGKILL" in event]
    assert all(process.poll() is not None for process in started)


def test_a_piece_that_always_kills_its_process_fails_the_work_with_a_message(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces, files = pieces_of(corpus)
    collected_processes(monkeypatch, program="import sys; sys.stdin.readline(); sys.exit(9)")
    with pytest.raises(LecternError, match=r"file_.*died 3 times \(exit status 9\).*--workers"):
        tokenize(pieces, files, tmp_path, 2)


def test_an_error_in_a_process_is_raised_as_itself(corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "corpus"
    shutil.copytree(corpus, other)
    pieces, files = pieces_of(corpus, other)
    (other / "file_07.py").write_text("another text\n")
    with pytest.raises(CorruptData, match=r"file_07\.py changed while it was being read"):
        tokenize(pieces, files, tmp_path, 2)


def test_a_stopped_process_is_named_until_it_continues(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces, files = pieces_of(corpus)
    started = collected_processes(monkeypatch)
    monkeypatch.setattr(tokenizing, "_SILENCE_SECONDS", 0.05)
    events: list[str] = []
    first = threading.Event()

    def on_done(piece: Piece) -> None:
        if not first.is_set():
            first.set()
            os.kill(started[0].pid, signal.SIGSTOP)

    def on_event(sentence: str) -> None:
        pid = started[0].pid
        if f" by process {pid}, which is stopped (kill -CONT {pid} " in sentence:
            events.append(sentence)
            os.kill(pid, signal.SIGCONT)

    tokenize(pieces, files, tmp_path, 2, on_done, on_event)
    assert events and events[0].startswith("still tokenising, ")
    assert any(entry.name in events[0] for piece in pieces for entry in piece.documents)
    assert all((tmp_path / f"{piece.name}.piece").exists() for piece in pieces)
    assert len(started) == 2


def endless_chats(folder: Path) -> tuple[Path, Path]:
    """Twelve chats, and a tokenizer whose template never ends on the eighth."""
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    template = "{% if messages[0].content == 'Question 7.' %}" + endless + "{% endif %}" + CHATML
    return chats_with_tokenizer(folder, template)


def test_an_endless_template_is_reported_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, tokenizer = endless_chats(tmp_path / "chats")
    monkeypatch.setattr(chats, "_MAX_SECONDS", 0.1)
    with pytest.raises(CorruptData, match=r"does not finish on chats\.jsonl#8; fix"):
        prepare(
            PrepareSettings(
                [source],
                tmp_path / "data",
                tokenizer=tokenizer,
                content=Content("messages", is_chat=True),
                validation_fraction=0,
                max_fault_fraction=0.1,
                workers=1,
                piece_bytes=300,
            )
        )


def test_a_process_reports_rows_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, tokenizer = endless_chats(tmp_path / "chats")
    monkeypatch.setattr(chats, "_MAX_SECONDS", 0.1)
    [template] = json.loads((tokenizer / "tokenizer_config.json").read_text())["chat_template"]
    content = Content("messages", is_chat=True)
    files = EncoderFiles(tokenizer / "tokenizer.json", content, template["template"], {})
    documents, _ = scan([("chats.jsonl", source)], content=content)
    [piece] = cut(documents, files.sha256(), 1 << 20)
    told = piece_worker.greeting(files, tmp_path) + piece_worker.order(piece)
    monkeypatch.setattr("sys.stdin", io.StringIO(told))
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        piece_worker.main()
    finally:
        signal.signal(signal.SIGINT, interrupt)
    answer = json.loads(capsys.readouterr().out)
    assert answer["name"] == piece.name and answer["reason"] == "corrupt_data"
    assert "on chats.jsonl#8" in answer["message"]


def test_a_damaged_piece_is_made_again(corpus: Path, tmp_path: Path) -> None:
    pieces, files = pieces_of(corpus)
    tokenize(pieces, files, tmp_path, 1)
    path = tmp_path / f"{pieces[3].name}.piece"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (tmp_path / f"{pieces[4].name}.piece").unlink()
    asked = Encoder.encode
    again: list[str] = []

    def encode(self: Encoder, documents: list[object]) -> object:
        again.append(documents[0].name)  # type: ignore[attr-defined]
        return asked(self, documents)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "encode", encode)
        tokenize(pieces, files, tmp_path, 1)
    assert again == [pieces[3].documents[0].name, pieces[4].documents[0].name]
    assert path.read_bytes() == whole


def test_two_at_once_into_the_same_dataset_are_refused(corpus: Path, tmp_path: Path) -> None:
    def again(stage: str, done: int, total: int) -> None:
        if stage == "writing":
            with pytest.raises(Conflict, match="another process is preparing"):
                prepare(PrepareSettings([corpus], tmp_path / "data", train_vocab_size=300))

    prepare(PrepareSettings([corpus], tmp_path / "data", train_vocab_size=300), on_progress=again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data-validation"]


def collected_processes(
    monkeypatch: pytest.MonkeyPatch, program: str | None = None
) -> list["subprocess.Popen[str]"]:
    """Returns a list that collects every process started from now on."""
    started: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def popen(command: list[str], **options: object) -> "subprocess.Popen[str]":
        if program is not None:
            command = [sys.executable, "-S", "-c", program]
        started.append(start(command, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr("lectern_data.tokens.tokenizing.subprocess.Popen", popen)
    return started
