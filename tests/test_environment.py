"""The lock, environment.yml, and what is installed say the same."""

import re
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture
def lock(root) -> dict[str, str]:
    lines = (root / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pins}


def test_everything_installed_is_as_locked(lock):
    for name, version in lock.items():
        assert metadata.version(name).split("+")[0] == version, name


def test_environment_yml_agrees_with_the_lock(root, lock):
    environment = yaml.safe_load((root / "environment.yml").read_text())
    (pip,) = (part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    pins = dict(line.split("==") for line in pip if "==" in line)
    assert {canonical(name): version for name, version in pins.items()}.items() <= lock.items()
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    direct = [*project["dependencies"], *(need for extra in extras for need in extra)]
    assert {canonical(name) for name in pins} == {canonical(Requirement(d).name) for d in direct}


def test_the_lock_is_within_the_ranges(root, lock):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for line in [*project["dependencies"], *(need for extra in extras for need in extra)]:
        need = Requirement(line)
        assert lock[canonical(need.name)] in need.specifier, line


def test_one_version_everywhere(root):
    """In the package, the citation and the changelog."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    citation = re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text("utf-8"), re.M)[1]
    changelog = re.search(r"^## (\S+)$", (root / "CHANGELOG.md").read_text("utf-8"), re.M)[1]
    assert project == citation == changelog
