"""The files in `deploy/`: read as their tools read them, and their own commands run."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from edgediffusion.runtime.cli import COMMANDS, main
from edgediffusion.runtime.run_command import _options

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))
UNIT = DEPLOY / "edgediffusion.service"
INSTRUCTIONS = {"FROM", "LABEL", "ENV", "COPY", "RUN", "USER", "WORKDIR", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
PROJECT = (ROOT / "pyproject.toml").read_text()


def instructions(path: Path) -> list[tuple[str, str]]:
    """Of a Dockerfile, with lines that go on joined."""
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def health_check(path: Path) -> list[str]:
    command: list[str] = json.loads(dict(instructions(path))["HEALTHCHECK"].partition("CMD ")[2])
    return command


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_keeps_to_the_rules(path: Path) -> None:
    """Of hadolint those that could be broken here: a tag, no root at the end, forms with brackets, no caches."""
    found = instructions(path)
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert found[0][0] == "FROM"
    stages: list[str] = []
    for image, *named in (value.split(" AS ") for name, value in found if name == "FROM"):
        assert image in stages or re.fullmatch(r"\S+:\d[\w.-]+", image)
        stages += named
    (user,) = [value for name, value in found if name == "USER"]
    assert user != "root"
    assert [name for name, _ in found].index("USER") > max(k for k, (name, _) in enumerate(found) if name == "RUN")
    for name, value in found:
        if name in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(value), list)
        if name == "RUN":
            assert "pip install" not in value or "--no-cache-dir" in value
            assert subprocess.run(["sh", "-n", "-c", value], check=False).returncode == 0
    arguments = dict(found)
    assert json.loads(arguments["ENTRYPOINT"]) == ["edgediffusion"]
    assert json.loads(arguments["CMD"])[0] in COMMANDS


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_extras_of_a_dockerfile_exist(path: Path) -> None:
    (extras,) = re.findall(r'"/src\[([\w,-]+)\]"', path.read_text())
    assert all(re.search(rf"^{extra} = \[", PROJECT, re.MULTILINE) for extra in extras.split(","))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_a_dockerfile_installs_first_is_required(path: Path) -> None:
    """The layer that new sources leave as it is holds nothing that they don't ask for."""
    first = next(value for name, value in instructions(path) if name == "RUN")
    names = [name.partition("[")[0] for name in shlex.split(first) if not name.startswith("-")][2:]
    assert names
    assert all(f'"{name}>=' in PROJECT for name in names)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_health_check_is_a_command_with_its_options(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which may fail, but for the lack of a GPU, or of the wheel for one."""
    program, *arguments = health_check(path)
    assert program == "edgediffusion"
    assert main(arguments) == 0 or re.search("NVIDIA|without CUDA", capsys.readouterr().err)


def build_context() -> set[str]:
    """What `.dockerignore` lets through."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    return {line[1:] for line in lines if line.startswith("!")}


def test_the_build_context_is_what_the_wheel_is_made_of() -> None:
    (wheel,) = re.findall(r"targets\.wheel\]\nonly-include = (\[.*\])", PROJECT)
    files = {"LICENSE", "README.md", "hatch_build.py", "pyproject.toml"}
    assert build_context() == {Path(name).parts[0] for name in json.loads(wheel)} | files


def test_the_commands_of_the_service() -> None:
    """They parse, with one program, and every folder that they name is one that systemd makes."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    (program, *warm), (same, *run) = (shlex.split(service[name]) for name in ("ExecStartPre", "ExecStart"))
    assert program == same
    assert warm == ["warm"]
    assert run[0] == "run"
    options = _options(run[1:])
    assert options.watch
    made = {Path("/var/lib") / name for name in service["StateDirectory"].split()}
    folders = options.source, options.output, options.status.parent, options.metrics.parent
    assert {Path(service["WorkingDirectory"]) / folder for folder in folders} < made


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_takes_the_service(tmp_path: Path) -> None:
    """With a program that is there in the place of what the service runs."""
    text = UNIT.read_text().replace("/opt/edgediffusion/bin/edgediffusion", sys.executable)
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(tmp_path / UNIT.name)], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.slow
def test_the_commands_of_the_dockerfile(tmp_path: Path) -> None:
    """Those with pip in a fresh environment, from the build context, then entry point, health check and a picture."""
    path = DEPLOY / "Dockerfile"
    found = dict(instructions(path))
    source = tmp_path / "src"
    source.mkdir()
    archive = ["git", "archive", "HEAD", *build_context()]
    packed = subprocess.run(archive, cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(source)], input=packed, check=True)
    venv.create(tmp_path / "venv", with_pip=True)
    environment = {"PATH": f"{tmp_path}/venv/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    for name, value in instructions(path):
        if name == "RUN" and "pip" in value:
            install = value.replace("/src", str(source)).replace("/app", str(tmp_path / "venv"))
            subprocess.run(["sh", "-c", install], env=environment, check=True)
    entry = json.loads(found["ENTRYPOINT"])
    for command in (
        [*entry, *json.loads(found["CMD"])],
        health_check(path),
        [*entry, "warm"],
        [*entry, "generate", "a red apple"],
    ):
        subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "a-red-apple.png").exists()
