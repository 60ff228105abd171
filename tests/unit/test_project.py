"""Test what maintainers rely on: the release's checks, the change log's fragments, workflows, forms and hooks."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GITHUB = ROOT / ".github"
CATEGORIES = ["added", "changed", "fixed", "removed", "security"]


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project that is ready to be released as v1.2.3."""
    for folder in ("cni", "changelog.d", "scripts"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "scripts/check_tag.py", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "changelog.d/README.md", tmp_path / "changelog.d")
    (tmp_path / "cni/__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Change log\n\n## 1.2.3 (2026-01-02)\n\n## 1.2.2 (2026-01-01)\n")
    return tmp_path


# ---- the tag ----


def check_tag(tree: Path, tag: str) -> tuple[int, str]:
    command = [sys.executable, tree / "scripts/check_tag.py", tag]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_a_tag_that_fits(tree: Path) -> None:
    assert check_tag(tree, "v1.2.3") == (0, "")


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2.2", "v1.2.30", "main"])
def test_a_tag_that_is_not_the_version(tree: Path, tag: str) -> None:
    assert check_tag(tree, tag) == (1, f"the tag is {tag}, but cni.__version__ is 1.2.3\n")


@pytest.mark.parametrize("heading", ["## 1.2.3 (unreleased)", "## 1.2.2 (2026-01-02)", "1.2.3 (2026-01-02)"])
def test_a_change_log_without_a_dated_section(tree: Path, heading: str) -> None:
    (tree / "CHANGELOG.md").write_text(f"# Change log\n\n{heading}\n")
    assert check_tag(tree, "v1.2.3") == (1, "CHANGELOG.md has no section '## 1.2.3 (YYYY-MM-DD)'\n")


def test_fragments_that_are_not_collated(tree: Path) -> None:
    (tree / "changelog.d/+ports.fixed.md").write_text("Ports.\n")
    (tree / "changelog.d/7.added.md").write_text("More ports.\n")
    assert check_tag(tree, "v1.2.3") == (1, "fragments are not collated: +ports.fixed.md, 7.added.md\n")


def test_this_version_is_in_the_change_log() -> None:
    (version,) = re.findall(r'__version__ = "(.+)"', (ROOT / "cni/__init__.py").read_text())
    assert f"\n## {version} (" in (ROOT / "CHANGELOG.md").read_text()


# ---- fragments of the change log ----


def collate(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "towncrier", "build", "--version", "1.2.3", *options]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=60)


def test_the_fragments_have_valid_names() -> None:
    done = collate(ROOT, "--draft")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["ports.md", "+ports.mended.md", "notes.txt"])
def test_an_invalid_name_is_an_error(tree: Path, name: str) -> None:
    (tree / "changelog.d" / name).write_text("Ports.\n")
    done = collate(tree, "--draft")
    assert done.returncode != 0
    assert name in done.stdout + done.stderr


def test_collating(tree: Path) -> None:
    """The new section stands above the earlier ones, in the order of the categories, and its tag fits."""
    log = tree / "CHANGELOG.md"
    log.write_text((ROOT / "CHANGELOG.md").read_text())
    (tree / "changelog.d/+ports.fixed.md").write_text("Ports work.\n")
    for category in reversed(CATEGORIES):
        (tree / f"changelog.d/7.{category}.md").write_text(f"This is {category}.\n")
    done = collate(tree, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^##+ (\w+\S*)", log.read_text(), re.MULTILINE)[:7] == [
        "1.2.3", "Added", "Changed", "Fixed", "Removed", "Security", "0.1.0",
    ]  # fmt: skip
    assert "\n- Ports work.\n" in log.read_text()
    assert check_tag(tree, "v1.2.3") == (0, "")


def test_the_categories_are_explained() -> None:
    explained = re.findall(r"^\| `(\w+)` \|", (ROOT / "changelog.d/README.md").read_text(), re.MULTILINE)
    assert explained == [category["directory"] for category in PYPROJECT["tool"]["towncrier"]["type"]] == CATEGORIES


# ---- GitHub ----


def test_pull_requests_run_what_every_change_has_to_pass() -> None:
    workflow = parsed(GITHUB / "workflows/test.yml")
    assert "pull_request" in workflow[True]  # YAML 1.1 reads the key `on` as a boolean
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1]["run"].rstrip("'\n").split()[-1] == ".ci/run"


def test_nothing_is_published_before_the_tag_is_checked() -> None:
    jobs = parsed(GITHUB / "workflows/release.yml")["jobs"]
    assert any("check_tag.py" in step.get("run", "") for step in jobs["tag"]["steps"])
    assert {name: job.get("needs") for name, job in jobs.items()} == {
        "tag": None,
        "wheels": "tag",
        "sdist": "tag",
        "publish": ["wheels", "sdist"],
    }


@pytest.mark.parametrize("path", sorted(GITHUB.glob("workflows/*.yml")), ids=lambda path: path.name)
def test_workflows_may_only_read_unless_a_job_says_more(path: Path) -> None:
    assert parsed(path)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms(name: str) -> None:
    form = parsed(GITHUB / f"ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_a_bug_report_has_what_the_doctor_finds() -> None:
    body = parsed(GITHUB / "ISSUE_TEMPLATE/bug.yml")["body"]
    required = [field["attributes"]["label"] for field in body if field.get("validations")]
    assert "Output of `cni doctor --json`" in required


def test_dependabot_and_the_issue_chooser_are_yaml() -> None:
    ecosystems = [update["package-ecosystem"] for update in parsed(GITHUB / "dependabot.yml")["updates"]]
    assert ecosystems == ["github-actions", "pip"]
    assert parsed(GITHUB / "ISSUE_TEMPLATE/config.yml")["blank_issues_enabled"] is False


# ---- hooks and metadata ----


def test_the_hooks_are_the_commands_of_make_lint() -> None:
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (repository,) = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = [shlex.split(hook["entry"]) for hook in repository["hooks"]]
    commands = [entry[2] if entry[:2] == ["sh", "-c"] else shlex.join(entry) for entry in entries]
    assert commands == [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]


def test_the_classifiers_name_the_versions_that_wheels_are_built_for() -> None:
    classifiers = PYPROJECT["project"]["classifiers"]
    named = {found[1] for text in classifiers if (found := re.fullmatch(r"Programming.* :: (3\.\d+)", text))}
    built = re.findall(r"cp3(\d+)-", " ".join(PYPROJECT["tool"]["cibuildwheel"]["build"]))
    assert named == {f"3.{minor}" for minor in built}
