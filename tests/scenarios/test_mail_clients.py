"""Programs that people use, through the contract's mail cluster: curl, swaks, mbsync, fetchmail."""

from __future__ import annotations

import contextlib
from email.utils import make_msgid
from pathlib import Path

import pytest
from mail_site import Contract, run

from l7lb.demo.mailclients import Lmtp, message, on_the_wire
from l7lb.demo.mailcluster import HOST

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]
ELSEWHERE = "sender@elsewhere.example"


def port(contract: Contract, listener: str) -> str:
    return contract.listeners[listener].rpartition(":")[2]


def fill(contract: Contract, person: str, count: int, server: str = "mx1") -> list[str]:
    """Put so many messages of growing size into somebody's store, past l7lb; returns their Message-IDs."""
    deliver = contract.target("lmtp")._replace(address=f"127.0.0.1:{contract.mail[server].ports['lmtp']}")
    ids = []
    with contextlib.closing(Lmtp(deliver)) as client:
        for number in range(count):
            made = message(ELSEWHERE, f"{person}@example.com", f"number {number}", body="x " * 300 * number)
            assert [code for code, _ in client.deliver(ELSEWHERE, [f"{person}@example.com"], made.as_bytes())] == [250]
            ids.append(str(made["Message-ID"]))
        client.quit()
    return ids


# --- curl ---------------------------------------------------------------------------------------------------------


def curl(contract: Contract, *words: str, person: str = "alice") -> str:
    user = ("--user", f"{person}@example.com:{contract.secret(person)}")
    certificate = ("--cacert", str(contract.directory / "certs" / "mail.pem"))
    return run("curl", "-sS", "--max-time", "30", *user, *certificate, *words)


@pytest.mark.needs("curl")
def test_curl_reads_by_imap_and_pop3(contract: Contract) -> None:
    (one,) = fill(contract, "alice", 1)
    assert "INBOX" in curl(contract, "--ssl-reqd", f"imap://127.0.0.1:{port(contract, 'imap')}/")
    found = curl(contract, f"imaps://127.0.0.1:{port(contract, 'imaps')}/INBOX?HEADER%20Message-ID%20{one[1:-1]}")
    number = found.split()[-1]
    assert one in curl(contract, f"imaps://127.0.0.1:{port(contract, 'imaps')}/INBOX;MAILINDEX={number}")
    assert one in curl(contract, "--ssl-reqd", f"pop3://127.0.0.1:{port(contract, 'pop3')}/{number}")


@pytest.mark.needs("curl")
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_curl_sends_by_submission(contract: Contract, tmp_path: Path, mechanism: str) -> None:
    made = message("alice@example.com", "dave@example.com", "sent by curl")
    (tmp_path / "mail").write_bytes(on_the_wire(made.as_bytes()))
    curl(
        contract, "--ssl-reqd", "--login-options", f"AUTH={mechanism}", "--mail-from", "alice@example.com",
        "--mail-rcpt", "dave@example.com", "--upload-file", str(tmp_path / "mail"),
        f"smtp://127.0.0.1:{port(contract, 'submission')}/client.example.org",
    )  # fmt: skip
    contract.until_stored(str(made["Message-ID"]), {"dave"})


# --- swaks --------------------------------------------------------------------------------------------------------


def swaks(contract: Contract, listener: str, *words: str, expected: int = 0) -> str:
    message_id = make_msgid(domain="swaks.example.org")
    server = ("--server", "127.0.0.1", "--port", port(contract, listener), "--timeout", "20s")
    run(
        "swaks", *server, "--helo", "client.example.org", "--from", "alice@example.com", "--header",
        f"Message-Id: {message_id}", *words, expected=expected,
    )  # fmt: skip
    return message_id


@pytest.mark.needs("swaks")
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_swaks_submits(contract: Contract, mechanism: str) -> None:
    login = ("--auth", mechanism, "--auth-user", "alice", "--auth-password", contract.secret("alice"))
    contract.until_stored(swaks(contract, "submission", "--to", "erin@example.com", "--tls", *login), {"erin"})


@pytest.mark.needs("swaks")
@pytest.mark.parametrize("words", [("--tls",), (), ("--pipeline",), ("--tls", "--pipeline")])
def test_swaks_sends(contract: Contract, words: tuple[str, ...]) -> None:
    contract.until_stored(swaks(contract, "mx", "--to", "frank@example.com", *words), {"frank"})


@pytest.mark.needs("swaks")
@pytest.mark.parametrize("words", [(), ("--pipeline",)])
def test_swaks_delivers_by_lmtp_to_two_servers(contract: Contract, words: tuple[str, ...]) -> None:
    to = ("--protocol", "LMTP", "--to", "alice@example.com,bob@example.com")
    contract.until_stored(swaks(contract, "lmtp", *to, *words), {"alice", "bob"})


@pytest.mark.needs("swaks")
def test_swaks_with_a_wrong_password(contract: Contract) -> None:
    login = ("--auth", "PLAIN", "--auth-user", "alice", "--auth-password", "wrong")
    swaks(contract, "submission", "--to", "erin@example.com", "--tls", *login, expected=28)


# --- mbsync: the whole mailbox, directly and through l7lb ---------------------------------------------------------

MBSYNC = """
IMAPAccount there
Host localhost
Port {port}
User grace
Pass "{secret}"
SSLType {tls}
{certificate}

IMAPStore far
Account there

MaildirStore near
Path {folder}/
Inbox {folder}/inbox

Channel all
Far :far:
Near :near:
Patterns INBOX
Create Near
SyncState *
"""


def synchronise(contract: Contract, folder: Path, number: str, tls: str) -> dict[bytes, int]:
    """The messages that mbsync makes of the mailbox, without what it adds to them."""
    folder.mkdir(exist_ok=True)
    certificate = f"CertificateFile {contract.directory}/certs/mail.pem" if tls != "None" else ""
    text = MBSYNC.format(port=number, secret=contract.secret("grace"), tls=tls, certificate=certificate, folder=folder)
    (folder / "mbsyncrc").write_text(text)
    run("mbsync", "-c", str(folder / "mbsyncrc"), "-q", "all")
    found: dict[bytes, int] = {}
    for path in (folder / "inbox").glob("*/*"):
        lines = path.read_bytes().splitlines()
        text_of_it = b"\n".join(line for line in lines if not line.startswith(b"X-TUID"))
        found[text_of_it] = found.get(text_of_it, 0) + 1
    return found


@pytest.mark.needs("mbsync")
def test_a_mailbox_synchronised_directly_and_through_l7lb_is_the_same(contract: Contract, tmp_path: Path) -> None:
    with contract.imap("grace") as client:  # while it is open, everything else is there too
        server = client.server()
        ids = fill(contract, "grace", 60, server)
        directly = synchronise(contract, tmp_path / "directly", str(contract.mail[server].ports["imap4"]), "None")
        assert len(directly) == len(ids)
        assert set(directly.values()) == {1}
        assert synchronise(contract, tmp_path / "starttls", port(contract, "imap"), "STARTTLS") == directly
        assert synchronise(contract, tmp_path / "implicit", port(contract, "imaps"), "IMAPS") == directly
        more = fill(contract, "grace", 5, server)
        again = synchronise(contract, tmp_path / "starttls", port(contract, "imap"), "STARTTLS")
        assert len(again) == len(ids) + len(more)


# --- fetchmail ----------------------------------------------------------------------------------------------------


@pytest.mark.needs("fetchmail")
@pytest.mark.parametrize("protocol", ["pop3", "imap"])
def test_fetchmail_empties_a_mailbox(contract: Contract, tmp_path: Path, protocol: str) -> None:
    with contract.imap("heidi") as client:
        ids = fill(contract, "heidi", 12, client.server())
    file = tmp_path / "fetchmailrc"
    file.touch(mode=0o600)
    file.write_text(
        f'poll 127.0.0.1 protocol {protocol} port {port(contract, protocol)} user "heidi@example.com" '
        f'password "{contract.secret("heidi")}" sslproto "TLS1.2+" sslcertck sslcommonname {HOST} '
        f'sslcertfile "{contract.directory}/certs/mail.pem" fetchall mda "cat >> {tmp_path}/got"\n'
    )
    environment = {"HOME": str(tmp_path), "FETCHMAILHOME": str(tmp_path)}
    run("env", *(f"{name}={value}" for name, value in environment.items()), "fetchmail", "-f", str(file), "--silent")
    got = (tmp_path / "got").read_text()
    assert all(got.count(f"Message-ID: {one}") == 1 for one in ids)
    assert contract.site.message_ids("heidi") == []
