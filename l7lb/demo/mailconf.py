"""The configuration files of the demo's mail servers: Dovecot, Postfix and slapd, each a private instance that shares
nothing with the system's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

DOMAIN = "example.com"
VIP_DOMAIN = "vip.example.com"
SUFFIX = "dc=example,dc=com"
READER, READER_PASSWORD = f"cn=reader,{SUFFIX}", "reads-people"
TOKEN_KEY = b"this key signs the demo's tokens and nothing else"


class Person(NamedTuple):
    """Somebody with a mailbox: ``name`` is the login name and the store's; ``server`` is the server that the directory
    names, if any; ``others`` are more addresses of the same store. LDAP knows them where they are ``listed``.
    """

    name: str
    password: str
    server: str = ""
    others: tuple[str, ...] = ()
    domain: str = DOMAIN
    listed: bool = True

    @property
    def address(self) -> str:
        """The address."""
        return f"{self.name}@{self.domain}"


class Place(NamedTuple):
    """Where a server's files are: ``site`` is shared by all servers, ``own`` is this one's."""

    site: Path
    own: Path


def passwords(people: Iterable[Person], mail: Path) -> str:
    """Dovecot's passwd-file: each of a person's names leads to the same store. A name of two persons is the first's."""
    lines: dict[str, str] = {}
    for one in people:
        for name in (one.name, *(other.partition("@")[0] for other in one.others)):
            home, user = mail / one.name, f"user={one.name} userdb_user={one.name}"
            lines.setdefault(name, f"{name}:{one.password}::::{home}::{user}\n")
    return "".join(lines.values())


DOVECOT = """\
base_dir = {own}/run
state_dir = {own}/state
instance_name = {name}
log_path = {own}/dovecot.log
log_timestamp = "%s "
first_valid_uid = 1
protocols = imap pop3 lmtp submission sieve
listen = 127.0.0.1
hostname = {name}.example.com
postmaster_address = postmaster@example.com
mail_location = maildir:~/Maildir
mail_fsync = never
auth_mechanisms = plain login xoauth2 oauthbearer
auth_username_format = %Ln
auth_failure_delay = 0
recipient_delimiter = +
imap_id_send = "name" {name}
managesieve_implementation_string = {name}
{trust}
ssl_cert = <{site}/servers.pem
ssl_key = <{site}/servers.key
passdb {{
  driver = passwd-file
  mechanisms = plain login
  args = scheme=PLAIN username_format=%n {site}/passwords
}}
passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {site}/oauth2.conf
}}
userdb {{
  driver = passwd-file
  args = username_format=%n {site}/passwords
  override_fields = uid=nobody gid=nogroup
}}
service imap-login {{
  service_count = 0
  process_min_avail = 1
  inet_listener imap {{
    port = {imap4}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service pop3-login {{
  service_count = 0
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service managesieve-login {{
  service_count = 0
  inet_listener sieve {{
    port = {managesieve}
  }}
}}
service submission-login {{
  service_count = 0
  inet_listener submission {{
    port = {submission}
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp}
  }}
}}
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
submission_relay_host = 127.0.0.1
submission_relay_port = {smtp}
submission_relay_trusted = yes
protocol lmtp {{
  mail_plugins = sieve
}}
plugin {{
  sieve = file:~/sieve;active=~/.dovecot.sieve
}}
"""
# Who comes from a trusted network is believed when it says who its client is, and may log in without TLS.
TRUSTING = "login_trusted_networks = 127.0.0.0/8\nssl = yes"
DISTRUSTING = "ssl = required\ndisable_plaintext_auth = yes"

OAUTH2 = """\
introspection_mode = local
local_validation_key_dict = fs:posix:prefix={site}/keys/
username_attribute = sub
"""

POSTFIX = """\
compatibility_level = 3.6
queue_directory = {own}/queue
data_directory = {own}/data
maillog_file = {own}/postfix.log
maillog_file_prefixes = {own}
myhostname = {name}.example.com
mydomain = example.com
mydestination =
mynetworks = 127.0.0.1/32
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_dns_support_level = disabled
smtpd_peername_lookup = no
virtual_mailbox_domains = {domains}
virtual_transport = lmtp:inet:{deliver}
virtual_alias_maps = inline:{{{aliases}}}
relay_domains =
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
smtpd_authorized_xclient_hosts = 127.0.0.0/8
smtpd_tls_security_level = may
smtpd_tls_cert_file = {site}/servers.pem
smtpd_tls_key_file = {site}/servers.key
smtpd_tls_loglevel = 1
alias_maps =
local_recipient_maps =
recipient_delimiter = +
queue_run_delay = 1s
minimal_backoff_time = 2s
maximal_backoff_time = 3s
bounce_queue_lifetime = 1h
lmtp_connect_timeout = 5s
lmtp_destination_concurrency_limit = 10
lmtp_destination_concurrency_failed_cohort_limit = 100
lmtp_destination_recipient_limit = 10
in_flow_delay = 0
smtpd_error_sleep_time = 0
biff = no
"""
# name, type, private, wakeup, at most, command
SERVICES = """\
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


def dovecot(name: str, place: Place, ports: Mapping[str, int], trusting: bool) -> str:
    """dovecot.conf. ``trusting``: l7lb is believed what it says of its clients; otherwise TLS is required of it."""
    return DOVECOT.format(
        name=name, site=place.site, own=place.own, trust=TRUSTING if trusting else DISTRUSTING, **ports
    )


def postfix(name: str, place: Place, port: int, deliver: str, people: Iterable[Person]) -> tuple[str, str]:
    """main.cf and master.cf. ``deliver`` is HOST:PORT of the LMTP server that gets what arrives."""
    aliases = ", ".join(f"{{{other} = {one.address}}}" for one in people for other in one.others)
    main = POSTFIX.format(
        name=name,
        site=place.site,
        own=place.own,
        deliver=deliver,
        domains=f"{DOMAIN} {VIP_DOMAIN}",
        aliases=aliases,
    )
    return main, f"127.0.0.1:{port} inet n - n - - smtpd\n{SERVICES}"


SLAPD = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
attributetype ( 1.3.6.1.4.1.32473.1.1 NAME 'mailAlternateAddress'
  EQUALITY caseIgnoreIA5Match SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
attributetype ( 1.3.6.1.4.1.32473.1.2 NAME 'mailHost'
  EQUALITY caseIgnoreIA5Match SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 SINGLE-VALUE )
objectclass ( 1.3.6.1.4.1.32473.1.3 NAME 'mailPerson' SUP top AUXILIARY MAY ( mailAlternateAddress $ mailHost ) )
pidfile {own}/pid
modulepath /usr/lib/ldap
moduleload back_mdb
database mdb
suffix "{suffix}"
rootdn "cn=root,{suffix}"
rootpw root
directory {own}/data
dbnosync
index uid,mail,mailAlternateAddress eq
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="{reader}" read by * none
"""
PERSON = """\
dn: uid={name},ou=people,{suffix}
objectClass: inetOrgPerson
objectClass: mailPerson
uid: {name}
cn: {name}
sn: {name}
mail: {address}
"""


def slapd(own: Path) -> str:
    """slapd.conf."""
    return SLAPD.format(own=own, suffix=SUFFIX, reader=READER)


def ldif(people: Iterable[Person]) -> str:
    """The tree of the people, and who may read it."""
    parts = [
        f"dn: {SUFFIX}\nobjectClass: dcObject\nobjectClass: organization\no: Example\ndc: example\n",
        f"dn: {READER}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: reader\n",
        f"dn: ou=people,{SUFFIX}\nobjectClass: organizationalUnit\nou: people\n",
    ]
    parts[1] += f"userPassword: {READER_PASSWORD}\n"
    for one in people:
        text = PERSON.format(name=one.name, address=one.address, suffix=SUFFIX)
        text += f"mailHost: {one.server}\n" if one.server else ""
        parts.append(text + "".join(f"mailAlternateAddress: {other}\n" for other in one.others))
    return "\n".join(parts)
