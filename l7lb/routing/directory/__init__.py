"""Directories: where it is written which mailbox an address means, and which server holds it.

Their libraries block, are large, and talk to programs that may hang, so they live in a process of their own
(:mod:`~l7lb.routing.directory.process`) that the keeper starts beside the state process::

    worker       DirectoryLink.ask          link.py      bounded in time, lives through the process's death
      | Ask                                 messages.py
      v
    process      Service: one Lookup for each directory that a worker uses
      |-- Lookup                            lookup.py    cache with what is missing, one flight for the same question
      `-- source                            ldap.py      servers in order, threads, ldap3
                                            file.py      a table in memory, read again when the file changes
                                            http.py      nginx's auth_http

A worker tells the process which directories it uses, so nobody else needs to know of them, and two workers with
different configurations, while one is being put into force, each get their own answers.
"""
