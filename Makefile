# Each target makes what it needs first: Debian packages where it runs as root, and .venv from the hashed lock.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

BIN := .venv/bin
REPORTS := build/reports
PYTEST := $(BIN)/python -m pytest -rs
SEEDS ?= 2000
QUICK := not scenario and not serial and not slow
COMPILED_TESTS := $(wildcard tests/core tests/protocols tests/proxy tests/routing tests/fuzz)

# command=package: the package is installed where the command is missing.
COMPILER_PACKAGES := gcc=gcc /usr/include/python3*/Python.h=python3-dev
BASE_PACKAGES := python3:venv=python3-venv python3:ensurepip=python3-venv
REAL_PACKAGES := curl=curl nginx=nginx-light haproxy=haproxy wrk=wrk h2load=nghttp2-client ip=iproute2 ss=iproute2 \
	ping=iputils-ping ps=procps strace=strace taskset=util-linux openssl=openssl nghttp=nghttp2-client sslscan=sslscan \
	systemd-analyze=systemd swaks=swaks /usr/lib/*/perl5/*/Net/SSLeay.pm=libnet-ssleay-perl mbsync=isync fetchmail=fetchmail ldapsearch=ldap-utils
MAIL_PACKAGES := /usr/lib/dovecot/imap-login=dovecot-imapd /usr/lib/dovecot/pop3-login=dovecot-pop3d \
	/usr/lib/dovecot/lmtp=dovecot-lmtpd /usr/lib/dovecot/submission-login=dovecot-submissiond \
	/usr/lib/dovecot/managesieve-login=dovecot-managesieved sievec=dovecot-sieve postfix=postfix slapd=slapd

.PHONY: help demo test lint unit compiled scenario serial versions bench soak fuzz lock wheel environment packages mail-packages compiler-packages all-packages clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: mail-packages environment ## servers, the load balancer and clients; shows what goes where, and a server's death
	@$(BIN)/l7lb demo

test: all-packages environment ## everything that must pass, fastest first, in some minutes
	@rm -rf $(REPORTS)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory compiled
	@$(MAKE) --no-print-directory scenario
	@$(MAKE) --no-print-directory serial
	@$(BIN)/python .ci/summary.py $(REPORTS)

lint: environment ## style, types, and the direction of imports
	@echo "== lint and types"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache | tail -n 3

unit: environment ## machines and units
	@echo "== units"
	@$(PYTEST) -m "$(QUICK)" --junit-xml=$(REPORTS)/unit.xml

compiled: compiler-packages environment ## the compiled package passes the tests of its compiled parts
	@echo "== compiled"
	@headers=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h; \
	if type -P gcc >/dev/null && [[ -e $$headers ]]; then \
		.ci/environment .venv-compiled compiled && \
		.venv-compiled/bin/python -P -m pytest -rs $(COMPILED_TESTS) -m "$(QUICK)" --junit-xml=$(REPORTS)/compiled.xml; \
	else echo "left out: there is no C compiler, or no headers of Python"; fi

scenario: packages environment ## real servers and clients
	@echo "== scenarios"
	@$(PYTEST) -m "scenario and not serial and not slow" --junit-xml=$(REPORTS)/scenario.xml

serial: packages environment ## what measures time, alone
	@echo "== serial"
	@$(PYTEST) -m "serial and not slow" --junit-xml=$(REPORTS)/serial.xml || [[ $$? -eq 5 ]]

versions: compiler-packages ## the unit tests and the compiled demo with every Python that is supported and at hand
	@.ci/versions -m "$(QUICK)"

bench: all-packages ## compiled, beside HAProxy and nginx; exits 1 beyond a limit (BENCH="keep-alive --rounds 9")
	@.ci/environment .venv-compiled compiled
	@failed=0; .venv-compiled/bin/python -m benchmarks $(BENCH) || failed=1; \
		if [[ -z "$(BENCH)" ]]; then \
			.venv-compiled/bin/python -P benchmarks/decisions.py || failed=1; \
			.venv-compiled/bin/python -P benchmarks/sticky.py || failed=1; \
		fi; exit $$failed

soak: packages environment ## the long runs: scenarios marked slow, and the fuzzers for longer
	@L7LB_FUZZ_SEEDS=$(SEEDS) $(PYTEST) --timeout 3600 -m slow
	@$(MAKE) --no-print-directory fuzz

fuzz: environment ## the parsers against many seeds (SEEDS=2000)
	@L7LB_FUZZ_SEEDS=$(SEEDS) $(PYTEST) --timeout 3600 tests/fuzz $(wildcard tests/protocols/*/test_*_fuzz.py)

lock: ## requirements/*.txt anew from pyproject.toml (needs uv)
	@command -v uv >/dev/null || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	@compile() { uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock" "$$@"; }; \
		compile $(LOCK) pyproject.toml -o requirements/runtime.txt; \
		compile $(LOCK) --extra test -c requirements/runtime.txt pyproject.toml requirements/build.in -o requirements/test.txt

wheel: environment ## the package, in dist/
	@$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

environment:
	@.ci/packages $(BASE_PACKAGES)
	@.ci/environment

packages:
	@.ci/packages $(BASE_PACKAGES) $(REAL_PACKAGES) $(MAIL_PACKAGES)

mail-packages:
	@.ci/packages $(BASE_PACKAGES) $(MAIL_PACKAGES)

compiler-packages:
	@.ci/packages $(BASE_PACKAGES) $(COMPILER_PACKAGES)

all-packages:
	@.ci/packages $(BASE_PACKAGES) $(REAL_PACKAGES) $(MAIL_PACKAGES) $(COMPILER_PACKAGES)

clean: ## what these targets made in this folder
	rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache
