"""Mail that flows while things happen: senders that try again as mail servers do, readers that log in again."""

from __future__ import annotations

import contextlib
import imaplib
import smtplib
import threading
import time
from collections.abc import Sequence
from email.message import EmailMessage
from typing import Self

from l7lb.demo.mailclients import Imap, Smtp, Target, message, on_the_wire, quietly

RETRY = 0.3  # seconds until what was refused for now is tried again


class Flow:
    """Senders that hand messages to SMTP as other mail servers do: what is refused for now is tried again.

    ``accepted`` are the Message-IDs with a 250 at the end of their data, each with its recipients. One whose end is
    in doubt (the connection broke, or the answer was a 4xx, behind the data) is noted in ``doubtful`` and sent anew
    under another Message-ID. ``refused`` are permanent refusals, which must not be.
    """

    def __init__(self, target: Target, recipients: Sequence[str], senders: int = 3, pause: float = 0.02) -> None:
        self.accepted: dict[str, str] = {}
        self.doubtful: list[str] = []
        self.refused: list[str] = []
        self.retries = 0
        self._target = target
        self._recipients = recipients
        self._pause = pause
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number, senders)) for number in range(senders)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        """Send no more; messages that are under way are finished."""
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _run(self, first: int, step: int) -> None:
        number = first
        later: list[tuple[float, str, str]] = []  # what was refused for now: when to try again, recipient, text
        while not self._ending.is_set() or later:
            if later and (later[0][0] <= time.monotonic() or self._ending.is_set()):
                when, recipient, text = later.pop(0)
                time.sleep(max(0.0, when - time.monotonic()))
            else:
                recipient, text = self._recipients[number % len(self._recipients)], f"message {number}"
                number += step
            if not self._send(recipient, text):
                self.retries += 1
                if len(self.refused) > 10:
                    return
                later.append((time.monotonic() + RETRY, recipient, text))
            time.sleep(self._pause)

    def _send(self, recipient: str, text: str) -> bool:
        """Hand one over; returns whether it got its 250. Each attempt has a Message-ID of its own."""
        made = message("sender@elsewhere.example", recipient, text)
        outcome = self._try(made, recipient)
        if outcome == "accepted":
            self.accepted[str(made["Message-ID"])] = recipient
        elif outcome == "doubtful":
            self.doubtful.append(str(made["Message-ID"]))
        return outcome == "accepted"

    def _try(self, made: EmailMessage, recipient: str) -> str:
        """``accepted``, ``doubtful`` or ``later``."""
        behind_data = False
        try:
            with quietly(client := Smtp(self._target)):
                client.ehlo()
                for code, answer in (client.mail(str(made["From"])), client.rcpt(recipient)):
                    if code != 250:
                        self._judge(code, answer)
                        return "later"
                behind_data = True
                code, answer = client.data(on_the_wire(made.as_bytes()))
                if code == 250:
                    return "accepted"
                self._judge(code, answer)
                return "doubtful"
        except smtplib.SMTPDataError as error:  # DATA itself was refused
            self._judge(error.smtp_code, error.smtp_error)
            return "later"
        except smtplib.SMTPResponseException as error:
            self._judge(error.smtp_code, error.smtp_error)
            return "doubtful" if behind_data else "later"
        except (OSError, smtplib.SMTPException):
            return "doubtful" if behind_data else "later"

    def _judge(self, code: int, answer: bytes | str) -> None:
        if 500 <= code < 600:
            self.refused.append(f"{code} {answer!r}")


class Reader:
    """Somebody who has a mailbox open all day: looks into it several times a second, and logs in again where the
    session ends.

    ``servers`` are those that the logins led to, in their order; ``refused`` counts logins that were refused for now,
    ``faults`` are answers that must not be.
    """

    def __init__(self, target: Target, user: str, password: str) -> None:
        self.user = user
        self.servers: list[str] = []
        self.faults: list[str] = []
        self.refused = 0
        self.looks = 0
        self._target = target
        self._password = password
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(RETRY if self.servers or self.refused else 0.0):
            with contextlib.suppress(OSError, EOFError, imaplib.IMAP4.abort):
                self._session()

    def _session(self) -> None:
        """From a login to the session's end; raises what ended it, but for a refusal."""
        client = Imap(self._target)
        with quietly(client):
            try:
                client.login(self.user, self._password)
            except imaplib.IMAP4.abort:
                raise
            except imaplib.IMAP4.error as error:
                self.refused += 1
                if "UNAVAILABLE" not in str(error):
                    self.faults.append(str(error))
                return
            self.servers.append(client.server())
            client.select(readonly=True)
            while not self._ending.wait(0.1):
                client.noop()
                self.looks += 1
