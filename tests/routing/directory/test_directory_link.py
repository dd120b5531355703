"""Workers and the directory process: what is asked is answered, once, in time, whatever dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import uvloop
from directory_helpers import Scripted, ask, file_directory, found, linked, serving, until

from l7lb.core.directory import Answer, Question
from l7lb.core.snapshot import Directory, HttpSource
from l7lb.routing.directory import link as link_module
from l7lb.routing.directory import messages
from l7lb.routing.directory import process as process_module
from l7lb.routing.directory.link import DirectoryLink, ask_numbers
from l7lb.routing.directory.lookup import make_source
from l7lb.routing.directory.messages import Ask, Frames, Told, Use, frame
from l7lb.routing.directory.process import Service
from l7lb.routing.directory.source import Result


def test_links_and_processes_work_on_uvloop(tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text("anna@example.com mx1\n")

    async def work() -> None:
        path = tmp_path / "directories.sock"
        async with serving(path), linked(path, file_directory(users)) as link:
            assert (await ask(link, b"anna@example.com")).status == "found"
            assert (await ask(link, b"nobody@example.com")).status == "missing"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "directories.sock"


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    path.write_text("anna@example.com mx1\nbert@example.com mx2\n")
    return path


class Start:
    """Starts directory processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: list[subprocess.Popen[bytes]] = []

    def __call__(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "l7lb.app", "directories", "--directory", str(self.path.parent)]
        self.all.append(subprocess.Popen(command))
        return self.all[-1]


@pytest.fixture
def start(socket_path: Path) -> Iterator[Start]:
    made = Start(socket_path)
    yield made
    for process in made.all:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.asyncio
async def test_an_answer_has_the_entry_and_the_policies_of_who_gave_it(socket_path: Path, users: Path) -> None:
    people = file_directory(users, missing="pool", unknown_server="pool", server_down="refuse")
    legacy = file_directory(users, "legacy", missing="refuse", unknown_server="refuse", server_down="pool")
    async with serving(socket_path), linked(socket_path, people, legacy) as link:
        answer = await ask(link, b"anna@example.com", "people", "legacy")
        assert (answer.status, answer.directory) == ("found", "people")
        assert answer.entry is not None
        assert answer.entry.server == "mx1"
        assert (answer.missing, answer.unknown_server, answer.server_down) == ("pool", "pool", "refuse")
        answer = await ask(link, b"nobody@example.com", "people", "legacy")
        assert (answer.status, answer.directory, answer.entry) == ("missing", "legacy", None)
        assert (answer.missing, answer.unknown_server, answer.server_down) == ("refuse", "refuse", "pool")


@pytest.mark.asyncio
async def test_the_answer_never_comes_inside_the_question(socket_path: Path, users: Path) -> None:
    async with serving(socket_path), linked(socket_path, file_directory(users)) as link:
        for names in [("people",), ("strangers",), ()]:
            answers: list[Answer] = []
            link.ask(names, Question(b"anna@example.com"), answers.append)
            assert answers == []
            await until(lambda answers=answers: answers)
            assert answers[0].status == ("found" if names == ("people",) else "failed")


@pytest.mark.asyncio
async def test_a_question_that_is_taken_back_has_no_answer(socket_path: Path) -> None:
    source = Scripted()
    source.gate.clear()
    async with serving(socket_path, Service(lambda _: source)), linked(socket_path, file_directory(Path("x"))) as link:
        answers: list[Answer] = []
        cancel = link.ask(("people",), Question(b"a@b"), answers.append)
        await until(lambda: source.asked)
        cancel()
        cancel()
        source.gate.set()
        assert (await ask(link, b"c@d")).status == "missing"
        assert answers == []
        link.ask(("strangers",), Question(b"a@b"), answers.append)()
        assert (await ask(link, b"e@f")).status == "missing"
        assert answers == []


@pytest.mark.asyncio
async def test_a_question_waits_for_a_process_that_is_not_there_yet(
    socket_path: Path, users: Path, start: Start
) -> None:
    async with linked(socket_path, file_directory(users)) as link:
        asked = asyncio.ensure_future(ask(link, b"bert@example.com"))
        await asyncio.sleep(0)
        start()
        assert (await asked).status == "found"


@pytest.mark.asyncio
async def test_a_process_that_dies_is_asked_again_when_it_is_back(
    socket_path: Path, users: Path, start: Start, tmp_path: Path
) -> None:
    fifo = tmp_path / "slow.txt"
    os.mkfifo(fifo)  # reading it takes as long as nobody writes
    slow = file_directory(fifo, "slow")
    first = start()
    async with linked(socket_path, file_directory(users), slow) as link:
        assert (await ask(link, b"anna@example.com")).status == "found"
        waiting = asyncio.ensure_future(ask(link, b"anna@example.com", "slow", "people"))
        assert (await ask(link, b"bert@example.com")).status == "found"
        first.kill()
        first.wait()
        await until(lambda: not link.connected)
        fifo.unlink()
        fifo.write_text("anna@example.com mx9\n")
        start()
        answer = await waiting
        assert answer.entry is not None
        assert answer.entry.server == "mx9"


@pytest.mark.asyncio
async def test_a_process_that_hangs_fails_the_question_in_time(
    socket_path: Path, users: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "MARGIN", 0.2)
    monkeypatch.setattr(messages, "LOADING", 0.1)
    process = start()
    async with linked(socket_path, file_directory(users, server_down="pool")) as link:
        await until(lambda: link.connected)
        assert (await ask(link, b"anna@example.com")).status == "found"
        process.send_signal(signal.SIGSTOP)
        try:
            answer = await ask(link, b"anna@example.com")
        finally:
            process.send_signal(signal.SIGCONT)
        assert (answer.status, answer.server_down) == ("failed", "pool")
        assert "no answer within" in answer.why
        assert (await ask(link, b"anna@example.com")).status == "found"


@pytest.mark.asyncio
async def test_without_a_process_a_question_fails_in_time(
    socket_path: Path, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "MARGIN", 0.05)
    monkeypatch.setattr(messages, "LOADING", 0.05)
    async with linked(socket_path, file_directory(users)) as link:
        answer = await ask(link, b"anna@example.com")
        assert (answer.status, answer.why) == ("failed", "the directory process is not there")


@pytest.mark.asyncio
async def test_a_successor_takes_the_socket_and_the_predecessor_answers_until_it_is_left(
    socket_path: Path, users: Path, start: Start
) -> None:
    old = start()
    async with linked(socket_path, file_directory(users)) as first:
        await until(lambda: first.connected)
        before = socket_path.stat().st_ino
        new = start()
        await until(lambda: socket_path.stat().st_ino != before)
        old.send_signal(signal.SIGTERM)
        async with linked(socket_path, file_directory(users)) as second:
            assert (await ask(second, b"anna@example.com")).status == "found"
            assert (await ask(first, b"anna@example.com")).status == "found"
            assert old.poll() is None
            first.use(())
            await asyncio.to_thread(old.wait, 10)
            assert (await ask(second, b"bert@example.com")).status == "found"
        new.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(new.wait, 10) == 0
        assert not socket_path.exists()


@pytest.mark.asyncio
async def test_one_that_was_replaced_ends_by_itself_when_it_is_left(
    socket_path: Path, users: Path, start: Start
) -> None:
    old = start()
    async with linked(socket_path, file_directory(users)) as first:
        await until(lambda: first.connected)
        before = socket_path.stat().st_ino
        start()
        await until(lambda: socket_path.stat().st_ino != before)
        assert (await ask(first, b"anna@example.com")).status == "found"
    assert await asyncio.to_thread(old.wait, 20) == 0
    assert socket_path.exists()


def test_who_is_replaced_at_once_knows_its_own_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "directory.sock"
    others = []

    def replace(source: Path, target: Path) -> None:
        monkeypatch.undo()
        os.replace(source, target)
        os.rename(target, tmp_path / "old")  # so that the numbers of both files are seen
        others.append(process_module.listen(path))

    monkeypatch.setattr(process_module.os, "replace", replace)
    listening, number = process_module.listen(path)
    (other, others_number), *_ = others
    assert number == process_module.inode(tmp_path / "old")
    assert others_number == process_module.inode(path) != number
    listening.close()
    other.close()


@pytest.mark.asyncio
async def test_how_the_directories_are_can_be_asked(socket_path: Path, users: Path) -> None:
    source = Scripted()
    source.answers[b"a@b"] = found()
    service = Service(lambda directory: source if directory.name == "scripted" else make_source(directory))
    directories = file_directory(users), file_directory(Path("x"), "scripted")
    async with serving(socket_path, service), linked(socket_path, *directories) as link:
        for address in (b"a@b", b"a@b", b"c@d"):
            await ask(link, address, "people", "scripted")
        await ask(link, b"anna@example.com", "people", "scripted")
        people, scripted = await ask_numbers(socket_path, 5.0)
        assert (people.directory, people.entries) == ("people", 2)
        assert people.answers == {"found": 1, "missing": 3, "refused": 0, "failed": 0}
        assert (scripted.directory, scripted.entries, scripted.asked) == ("scripted", 2, 2)
        assert scripted.answers == {"found": 2, "missing": 1, "refused": 0, "failed": 0}
        assert scripted.seconds >= 0.0
    with pytest.raises(OSError, match=r"No such file|refused"):
        await ask_numbers(socket_path, 5.0)


@pytest.mark.asyncio
async def test_a_password_goes_only_where_it_is_judged(socket_path: Path, users: Path) -> None:
    class Listening(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.passwords: list[bytes] = []

        async def find(self, question: Question) -> Result:
            self.passwords.append(question.password)
            return await super().find(question)

    source = Listening()
    judge = Directory(name="judge", source=HttpSource(url="http://127.0.0.1:1/"))
    async with (
        serving(socket_path, Service(lambda _: source)),
        linked(socket_path, file_directory(users), judge) as link,
    ):
        await ask(link, b"a@b", "people", password=b"secret")
        await ask(link, b"c@d", "judge", password=b"secret")
        assert source.passwords == [b"", b"secret"]


@pytest.mark.asyncio
async def test_a_reload_changes_the_directories(socket_path: Path, users: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("anna@example.com mx7\n")
    async with serving(socket_path) as process, linked(socket_path, file_directory(users)) as link:
        assert (await ask(link, b"bert@example.com")).status == "found"
        link.use((file_directory(other),))
        answer = await ask(link, b"anna@example.com")
        assert answer.entry is not None
        assert answer.entry.server == "mx7"
        assert (await ask(link, b"bert@example.com")).status == "missing"
        assert len(process.service._open) == 2
        await process.service.tidy(process.now() + 1000.0)
        assert len(process.service._open) == 1
        link.use(())
        await until(lambda: not process.workers)
        assert (await ask(link, b"anna@example.com")).status == "failed"
        await process.service.tidy(process.now() + 1000.0)
        assert process.service._open == {}


@pytest.mark.asyncio
async def test_only_the_asker_knows_policies_so_changing_them_forgets_nothing(socket_path: Path) -> None:
    source = Scripted()
    source.answers[b"a@b"] = found()
    one = file_directory(Path("x"), missing="pool")
    async with serving(socket_path, Service(lambda _: source)), linked(socket_path, one) as link:
        assert (await ask(link, b"a@b")).missing == "pool"
        link.use((msgspec.structs.replace(one, missing="refuse"),))
        assert (await ask(link, b"a@b")).missing == "refuse"
        assert source.asked == [b"a@b"]


@pytest.mark.asyncio
async def test_a_directory_that_cannot_be_opened_fails_and_leaves_the_others(socket_path: Path, users: Path) -> None:
    broken = msgspec.structs.replace(
        file_directory(users, "broken"),
        source=msgspec.structs.replace(file_directory(users).source, columns=("server",)),
    )
    async with serving(socket_path), linked(socket_path, file_directory(users), broken) as link:
        answer = await ask(link, b"anna@example.com", "broken")
        assert answer.status == "failed"
        assert "columns" in answer.why
        assert (await ask(link, b"anna@example.com")).status == "found"


@pytest.mark.asyncio
async def test_a_fault_in_what_follows_an_answer_ends_no_other(
    socket_path: Path, users: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(answer: Answer) -> None:
        raise RuntimeError("a fault")

    async with serving(socket_path), linked(socket_path, file_directory(users)) as link:
        link.ask(("people",), Question(b"anna@example.com"), fault)
        assert (await ask(link, b"anna@example.com")).status == "found"
    assert "a fault in what an answer" in caplog.text


@pytest.mark.asyncio
async def test_who_speaks_nonsense_is_left(socket_path: Path, users: Path) -> None:
    async with serving(socket_path) as process, linked(socket_path, file_directory(users)) as link:
        await until(lambda: link.connected)
        for nonsense in [
            b"\x00\x00\x00\x02hi",
            b"\xff\xff\xff\xff",
            frame(messages.Join(999)),
            frame(Use(())),  # before an introduction
        ]:
            reader, writer = await asyncio.open_unix_connection(str(socket_path))
            writer.write(nonsense)
            assert await asyncio.wait_for(reader.read(), 5.0) == b""
            writer.close()
        await until(lambda: len(process.workers) == 1)
        assert (await ask(link, b"anna@example.com")).status == "found"


@pytest.mark.asyncio
async def test_any_split_of_the_bytes_gives_the_same_messages() -> None:
    sent = [
        Told(1, "found", "people", entry=(b"m", "s", b"", b"", b"", b"", False)),
        Told(2, "missing"),
        Told(3, "failed"),
    ]
    data = b"".join(frame(one) for one in sent)
    for place in range(len(data) + 1):
        frames = Frames()
        got = frames.feed(data[:place]) + frames.feed(data[place:])
        assert [messages.from_process.decode(body) for body in got] == sent
    frames = Frames()
    got = [body for octet in data for body in frames.feed(bytes([octet]))]
    assert len(got) == len(sent)


@pytest.mark.asyncio
async def test_no_password_is_shown() -> None:
    question = Question(b"a@b")
    question.password = b"secret"
    ask_ = Ask.of(1, ("people",), question)
    assert "secret" not in repr(ask_)
    assert "secret" not in repr(Told(1, "found", entry=(b"", "", b"", b"secret", b"", b"", False)))
    asked = ask_.question()
    assert all(getattr(asked, name) == getattr(question, name) for name in Question.__slots__)


@pytest.mark.asyncio
async def test_too_many_questions_are_refused_and_not_kept(
    socket_path: Path, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "OPEN", 3)
    link = DirectoryLink(asyncio.get_running_loop(), socket_path)
    link.use((file_directory(users),))
    answers: list[Answer] = []
    cancels = [link.ask(("people",), Question(b"a@b"), answers.append) for _ in range(5)]
    await until(lambda: len(answers) == 2)
    assert {answer.why for answer in answers} == {"3 questions wait already"}
    for cancel in cancels:
        cancel()
    assert link._waiting == {}


@pytest.mark.asyncio
async def test_directories_that_nobody_configured_start_nothing(socket_path: Path) -> None:
    directories: tuple[Directory, ...] = ()
    async with serving(socket_path) as process, linked(socket_path, *directories) as link:
        assert (await ask(link, b"a@b")).status == "failed"
        assert process.workers == set()
