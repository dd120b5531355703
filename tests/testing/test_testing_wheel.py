"""Another project, which has nothing of l7lb but the wheel, tests its own rules: it passes, and fails when a rule breaks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

CONFIGURATION = """
listeners:
  - name: web
    protocol: http
    bind: ["0.0.0.0:80"]
    routes:
      - match: {host: "api.example.org", path: "/v1/*"}
        pool: api
      - match: {path: "/private/*", not: {source: ["127.0.0.2"]}}
        respond: {status: 403}
      - pool: site
pools:
  site:
    persistence: {cookie: {name: SITE}}
    servers: [{name: a, address: "10.0.0.1:80"}, {name: b, address: "10.0.0.2:80"}]
  api:
    servers: [{name: api, address: "api.internal:8080"}]
"""

RULES = '''
import pytest

from l7lb.testing import Playbook, pieces


def test_plain(l7lb_rules):
    rules = l7lb_rules()
    assert rules.get("http://api.example.org/v1/users").pool == "api"
    assert rules.get("http://api.example.org/v2/users").pool == "site"
    assert rules.get("/private/x").status == 403
    assert rules.get("/private/x", source="127.0.0.2").pool == "site"


@pytest.mark.asyncio
async def test_sticky(l7lb_node):
    async with l7lb_node() as node, node.browser() as browser:
        server = (await browser.get("/")).server
        assert {(await browser.get("/")).server for _ in range(4)} == {server}


@pytest.mark.asyncio
async def test_conversation(l7lb_node):
    async with l7lb_node() as node:
        await node.play("""
            client connects
            client> GET /v1/users HTTP/1.1
            client> Host: api.example.org
            client>
            api accepts
            api< GET /v1/users HTTP/1.1
            api< ...
            api<
            api> HTTP/1.1 204 No Content
            api>
            client< HTTP/1.1 204 No Content
        """, pieces(5))
'''

INI = """
[pytest]
asyncio_mode = strict
asyncio_default_fixture_loop_scope = function
filterwarnings = error
l7lb_config = conf/l7lb.yaml
"""


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "PIP_"))}
    clean["L7LB_COMPILE"] = "0"  # what is compiled is the same code, and takes minutes to build
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=clean, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the built wheel, and the libraries it needs from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "l7lb"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, source, cwd=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("l7lb-*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    installed = run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    # The libraries' folder comes behind the wheel's own; a .pth in it, such as an editable install's, is not followed.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(source)
    return python


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "l7lb.yaml").write_text(CONFIGURATION)
    (tmp_path / "test_rules.py").write_text(RULES)
    (tmp_path / "pytest.ini").write_text(INI)
    return tmp_path


def test_the_wheel_alone_is_seen(python: Path, tmp_path: Path) -> None:
    found = run(python, "-c", "import l7lb.testing; print(l7lb.testing.__file__)", cwd=tmp_path)
    assert found.stdout.startswith(str(python.parent.parent)), found.stdout + found.stderr


def test_the_project_passes_with_its_rules(python: Path, project: Path) -> None:
    done = run(python, "-m", "pytest", "-p", "no:cacheprovider", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


@pytest.mark.parametrize(
    ("rule", "broken", "failing"),
    [
        ('path: "/v1/*"', 'path: "/v2/*"', {"test_plain", "test_conversation"}),
        ("persistence: {cookie: {name: SITE}}", "balance: round-robin", {"test_sticky"}),
        ("status: 403", "status: 404", {"test_plain"}),
    ],
)
def test_the_project_fails_when_a_rule_is_broken(
    python: Path, project: Path, rule: str, broken: str, failing: set[str]
) -> None:
    assert rule in CONFIGURATION
    (project / "conf" / "l7lb.yaml").write_text(CONFIGURATION.replace(rule, broken))
    done = run(python, "-m", "pytest", "-p", "no:cacheprovider", "-rf", cwd=project)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = {line.split("::")[1].split()[0] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == failing, done.stdout


def test_a_project_without_a_configuration_is_told(python: Path, project: Path) -> None:
    (project / "pytest.ini").write_text(INI.replace("l7lb_config = conf/l7lb.yaml\n", ""))
    done = run(python, "-m", "pytest", "-p", "no:cacheprovider", "-k", "plain", cwd=project)
    assert done.returncode == 1
    assert "no configuration: set l7lb_config" in done.stdout
    done = run(
        python, "-m", "pytest", "-p", "no:cacheprovider", "-k", "plain", "--l7lb-config", "conf/l7lb.yaml", cwd=project
    )
    assert done.returncode == 0, done.stdout
