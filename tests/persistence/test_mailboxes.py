"""Claims of mailboxes, decided in the state process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from l7lb.core.errors import Failure
from l7lb.persistence import mailboxes
from l7lb.persistence.mailbox_messages import Claim, Denied, Dismiss, Granted, Held, MailboxToWorker, Refusal
from l7lb.persistence.mailboxes import REST, WAIT, Mailboxes

BOX = ("mail", b"anna")


class Remembered:
    """Pins in a dictionary."""

    def __init__(self) -> None:
        self.pins: dict[tuple[str, bytes], tuple[str, float]] = {}

    def get(self, pool: str, mailbox: bytes, now: float) -> str:
        server, until = self.pins.get((pool, mailbox), ("", 0.0))
        return server if now < until else ""

    def put(self, pool: str, mailbox: bytes, server: str, expire: float, now: float) -> None:
        self.pins[pool, mailbox] = server, now + expire

    def delete(self, pool: str, mailbox: bytes, now: float) -> None:
        self.pins.pop((pool, mailbox), None)


class Scene:
    """An engine, and what it sent."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sent: list[tuple[int, MailboxToWorker]] = []
        self.pins = Remembered()
        self.engine = Mailboxes(self.pins, lambda worker, message: self.sent.append((worker, message)))
        self.engine.open(self.now)

    def held(
        self, number: int, server: str = "a", mailbox: bytes = b"anna", expire: float = 900.0, **more: int
    ) -> Held:
        return Held(number, "mail", mailbox, server, "imap4", "192.0.2.1", expire, **more)

    def claim(self, worker: int, number: int, server: str = "a", **more: object) -> list[tuple[int, MailboxToWorker]]:
        self.engine.claim(worker, Claim(self.held(number, server), **more), self.now)  # type: ignore[arg-type]
        return self.take()

    def ended(self, worker: int, *numbers: int) -> list[tuple[int, MailboxToWorker]]:
        self.engine.ended(worker, numbers, self.now)
        return self.take()

    def later(self, seconds: float) -> list[tuple[int, MailboxToWorker]]:
        self.now += seconds
        self.engine.tick(self.now)
        return self.take()

    def take(self) -> list[tuple[int, MailboxToWorker]]:
        sent, self.sent = self.sent, []
        return sent


@pytest.fixture
def scene() -> Iterator[Scene]:
    return Scene()


def granted(worker: int, number: int, server: str) -> list[tuple[int, MailboxToWorker]]:
    return [(worker, Granted(number, server))]


def denied(worker: int, number: int, failure: Failure | None) -> list[tuple[int, MailboxToWorker]]:
    return [(worker, Denied(number, failure.label if failure is not None else ""))]


def moving(worker: int, *numbers: int) -> list[tuple[int, MailboxToWorker]]:
    return [(worker, Dismiss(list(numbers), mailboxes.MOVED, True))]


def test_the_first_claim_decides_for_all(scene: Scene) -> None:
    assert scene.claim(1, 1, "a") == granted(1, 1, "a")
    assert scene.claim(2, 1, "b") == granted(2, 1, "a")


def test_a_pin_outlives_its_last_session_by_its_time(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    scene.later(10_000.0)
    scene.ended(1, 1)
    scene.later(899.0)
    assert scene.claim(1, 2, "b") == granted(1, 2, "a")
    scene.ended(1, 2)
    scene.later(901.0)
    assert scene.claim(1, 3, "b") == granted(1, 3, "b")


def test_a_session_that_can_not_connect_leaves_where_it_is_alone(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    scene.claim(2, 1, "a")
    assert scene.claim(1, 1, "b", lost="a") == denied(1, 1, None)
    assert scene.claim(2, 1, "b", lost="a") == granted(2, 1, "b")
    assert scene.claim(1, 2, "a") == granted(1, 2, "b")


def test_a_mailbox_leaves_a_server_that_is_down_after_its_sessions(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    scene.claim(2, 7, "a")
    assert sorted(scene.claim(3, 1, "b", lost="a", down=True)) == sorted(moving(1, 1) + moving(2, 7))
    assert scene.ended(1, 1) == []
    assert scene.claim(4, 1, "a") == []
    assert scene.ended(2, 7) == []
    assert scene.later(REST) == granted(3, 1, "b") + granted(4, 1, "b")


def test_without_another_server_a_mailbox_stays(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    assert scene.claim(2, 1, "", lost="a", down=True) == denied(2, 1, Failure.MAILBOX_SERVER)
    assert scene.claim(2, 2, "a") == granted(2, 2, "a")


def test_without_any_server_there_is_none(scene: Scene) -> None:
    assert scene.claim(1, 1, "") == denied(1, 1, Failure.NO_SERVER)
    assert not scene.engine.pools()


def test_a_directory_s_word_moves_a_mailbox(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    assert scene.claim(2, 1, "b", fixed=True) == moving(1, 1)
    scene.ended(1, 1)
    assert scene.later(REST) == granted(2, 1, "b")
    row = scene.engine.row(BOX, scene.now)
    assert row is not None
    assert row.fixed
    assert row.server == "b"


def test_a_mailbox_whose_sessions_do_not_end_stays(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    scene.claim(2, 1, "b", lost="a", down=True)
    assert scene.later(WAIT)[-1:] == denied(2, 1, Failure.MAILBOX_MOVING)
    assert scene.engine.row(BOX, scene.now).server == "a"  # type: ignore[union-attr]


def test_a_move_waits_for_its_operator(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    answers: list[bool] = []
    assert scene.engine.move(BOX, 900.0, 10.0, scene.now, answers.append) == 1
    with pytest.raises(ValueError, match="already"):
        scene.engine.move(BOX, 900.0, 10.0, scene.now, answers.append)
    assert scene.take() == moving(1, 1)
    assert scene.claim(2, 1, "a") == []
    scene.ended(1, 1)
    assert answers == []
    assert scene.later(REST) == []
    assert answers == [True]
    assert scene.engine.switch(BOX, "b", scene.now)
    assert scene.take() == granted(2, 1, "b")


def test_a_move_that_nobody_ends_is_given_up(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    answers: list[bool] = []
    scene.engine.move(BOX, 900.0, 10.0, scene.now, answers.append)
    scene.ended(1, 1)
    scene.later(REST)
    scene.later(WAIT - REST + 9.0)
    scene.take()
    assert scene.claim(2, 1, "b") == []
    assert scene.later(1.0) == granted(2, 1, "a")
    assert answers == [True]
    assert not scene.engine.switch(BOX, "b", scene.now)


def test_a_move_whose_sessions_stay_says_so(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    answers: list[bool] = []
    scene.engine.move(BOX, 900.0, 10.0, scene.now, answers.append)
    scene.later(WAIT)
    assert answers == [False]
    assert not scene.engine.switch(BOX, "b", scene.now)
    assert scene.claim(2, 1, "b") == granted(2, 1, "a")


def test_an_idle_mailbox_moves_at_once(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    scene.ended(1, 1)
    answers: list[bool] = []
    assert scene.engine.move(BOX, 900.0, 10.0, scene.now, answers.append) == 0
    assert answers == [True]
    assert scene.engine.switch(BOX, "b", scene.now)
    assert scene.claim(1, 2, "a") == granted(1, 2, "b")


def test_a_move_to_nowhere_leaves_it_to_the_next_login(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    scene.ended(1, 1)
    scene.engine.move(BOX, 900.0, 10.0, scene.now, lambda ready: None)
    scene.engine.switch(BOX, "", scene.now)
    assert scene.claim(1, 2, "c") == granted(1, 2, "c")


def test_kicked_sessions_keep_their_pin(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    scene.claim(1, 2, "a")
    assert scene.engine.kick(BOX) == 2
    assert scene.take() == [(1, Dismiss([1, 2], mailboxes.KICKED, False))]
    assert scene.ended(1, 1, 2) == []
    assert scene.claim(1, 3, "b") == granted(1, 3, "a")


def test_sessions_of_a_pool_without_pins_are_only_counted(scene: Scene) -> None:
    for number, server in ((1, "a"), (2, "b")):
        scene.engine.claim(1, Claim(scene.held(number, server, expire=-1.0, per_mailbox=2)), scene.now)
        assert scene.take() == granted(1, number, server)
    scene.engine.claim(1, Claim(scene.held(3, "a", expire=-1.0, per_mailbox=2)), scene.now)
    assert scene.take() == denied(1, 3, Failure.SESSION_LIMIT)
    scene.ended(1, 1)
    scene.engine.claim(1, Claim(scene.held(3, "a", expire=-1.0, per_mailbox=2)), scene.now)
    assert scene.take() == granted(1, 3, "a")
    assert scene.engine.kick(BOX) == 2


def test_an_address_has_so_many_sessions(scene: Scene) -> None:
    for number, mailbox in ((1, b"anna"), (2, b"ben")):
        scene.engine.claim(1, Claim(scene.held(number, mailbox=mailbox, per_address=2)), scene.now)
    scene.take()
    scene.engine.claim(2, Claim(scene.held(1, mailbox=b"carl", per_address=2)), scene.now)
    assert scene.take() == denied(2, 1, Failure.SESSION_LIMIT)
    scene.engine.gone(1, scene.now)
    scene.engine.claim(2, Claim(scene.held(1, mailbox=b"carl", per_address=2)), scene.now)
    assert scene.take() == granted(2, 1, "a")


def test_failures_slow_an_address_down(scene: Scene) -> None:
    for _ in range(3):
        scene.engine.refused(Refusal("192.0.2.1", 3, 60.0), scene.now)
    assert scene.claim(1, 1, failures=3, window=60.0) == []
    assert scene.later(0.9) == []
    assert scene.later(0.2) == granted(1, 1, "a")
    for _ in range(30):
        scene.engine.refused(Refusal("192.0.2.1", 3, 60.0), scene.now)
    assert scene.claim(1, 2, failures=3, window=60.0) == []
    assert scene.later(14.0) == []
    assert scene.later(1.1) == granted(1, 2, "a")
    scene.later(300.0)
    assert scene.claim(1, 3, failures=3, window=60.0) == granted(1, 3, "a")


def test_a_login_that_gives_up_is_no_session(scene: Scene) -> None:
    scene.engine.refused(Refusal("192.0.2.1", 1, 60.0), scene.now)
    assert scene.claim(1, 1, failures=1) == []
    scene.ended(1, 1)
    assert scene.later(20.0) == []
    assert not scene.engine.pools()


def test_nothing_is_granted_before_all_have_told(scene: Scene) -> None:
    scene.engine = Mailboxes(scene.pins, lambda worker, message: scene.sent.append((worker, message)))
    assert scene.claim(1, 1, "b") == []
    scene.engine.taught(2, [scene.held(5, "a")], scene.now)
    scene.engine.open(scene.now)
    assert scene.take() == granted(1, 1, "a")


def test_what_a_worker_has_open_counts_more_than_what_is_remembered(scene: Scene) -> None:
    scene.pins.put("mail", b"anna", "b", 900.0, scene.now)
    scene.engine.taught(2, [scene.held(5, "a")], scene.now)
    assert scene.claim(1, 1, "b") == granted(1, 1, "a")


def test_of_two_servers_the_later_told_one_s_session_is_ended(scene: Scene) -> None:
    scene.engine.taught(1, [scene.held(5, "a")], scene.now)
    scene.engine.taught(2, [scene.held(6, "b")], scene.now)
    assert scene.take() == moving(2, 6)
    assert scene.claim(3, 1, "c") == moving(2, 6)
    scene.ended(2, 6)
    assert scene.later(REST) == granted(3, 1, "a")


def test_a_worker_that_lives_keeps_its_sessions(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    scene.engine.absent(1, scene.now)
    scene.take()
    assert scene.claim(2, 1, "b", lost="a", down=True) == moving(1, 1)
    scene.engine.taught(1, [scene.held(1, "a")], scene.now)
    assert scene.take() == moving(1, 1)  # it had not heard
    scene.ended(1, 1)
    assert scene.later(REST) == granted(2, 1, "b")


def test_a_worker_s_end_is_its_sessions_end(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    scene.claim(2, 1, "b", lost="a", down=True)
    scene.engine.gone(1, scene.now)
    assert scene.later(REST) == granted(2, 1, "b")


def test_a_worker_that_stays_away_is_given_up(scene: Scene) -> None:
    scene.claim(1, 1, "a")
    scene.engine.absent(1, scene.now)
    scene.later(mailboxes.ABSENT)
    assert not scene.engine.pools()
