"""Files that have to agree with one another."""

import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

from ttm_lab.files import find_root

ROOT = find_root(__file__)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def supported_versions():
    start = "Programming Language :: Python :: "
    return [c.removeprefix(start) for c in PROJECT["classifiers"] if re.match(start + r"3\.\d", c)]


def test_conda_environment_agrees_with_pyproject():
    environment = yaml.safe_load(read("environment.yml"))
    assert environment["name"] == PROJECT["name"]
    *plain, pip = environment["dependencies"]
    lowest, highest = supported_versions()[0], supported_versions()[-1]
    following = f"3.{int(highest.split('.')[1]) + 1}"
    assert plain == [f"python >={lowest},<{following}", "pip"]
    assert PROJECT["requires-python"] == f">={lowest}"
    # The package itself brings every dependency, so no range stands in two places.
    # The course needs no ImageNet, no cluster and no methods on features: those are by name.
    by_name = ("cluster", "features", "imagenet")
    extras = ",".join(name for name in PROJECT["optional-dependencies"] if name not in by_name)
    assert pip == {"pip": [f"--editable .[{extras}]"]}
    assert f'--editable ".[{extras}]"' in read("Makefile")


def test_continuous_integration_covers_the_supported_versions():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python-version"] == supported_versions()
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    triggers = workflow[True]  # YAML 1.1 reads the key "on" as true
    assert {"push", "pull_request", "schedule"} <= set(triggers)
    commands = re.findall(r"^part .* (make \S+)$", read(".ci/run"), re.M)
    expected = ["setup", "test-all", "test-recipes", "reproduce"]  # which makes the site
    assert commands == [f"make {target}" for target in expected]
    assert job["timeout-minutes"] == 45


def test_make_test_leaves_out_what_is_marked_slow_and_test_all_nothing():
    def shown(target):
        done = subprocess.run(
            ["make", "-n", "-o", "setup", target], cwd=ROOT, capture_output=True, text=True
        )
        return done.stdout

    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    assert '-m "not slow"' in shown("test")
    assert "slow" not in shown("test-all")
    assert "-m pytest" in shown("test-all")


def test_site_is_published_from_the_main_branch_alone():
    workflow = yaml.safe_load(read(".github/workflows/site.yml"))
    assert workflow[True]["push"]["branches"] == ["main"]
    assert "pull_request" not in workflow[True]
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert "make site" in [step.get("run") for step in build["steps"]]
    (upload,) = [s for s in build["steps"] if "upload-pages-artifact" in s.get("uses", "")]
    assert upload["with"]["path"] == "runs/site"
    # Only the job that publishes, and runs none of our code, may write to the code host.
    assert workflow["permissions"] == {"contents": "read"}
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    assert publish["needs"] == "build"
    assert not any("run" in step for step in publish["steps"])


def test_hooks_use_the_ranges_of_the_test_extra():
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    wanted = {need for hook in hooks for need in hook["additional_dependencies"]}
    assert wanted <= set(PROJECT["optional-dependencies"]["test"])
    assert {hook["id"] for hook in hooks} == {"nbstripout", "ruff", "ruff-format"}


def test_hook_drops_what_a_batch_leaves_in_a_notebook(tmp_path):
    import nbformat

    notebook = nbformat.v4.new_notebook()
    notebook.metadata = {
        "papermill": {"duration": 1},
        "widgets": {},
        "language_info": {"name": "p"},
    }
    kept = nbformat.v4.new_code_cell("x = 1", id="readable-name", execution_count=3)
    kept.metadata = {"papermill": {"duration": 1}, "execution": {}, "tags": ["parameters"]}
    injected = nbformat.v4.new_code_cell("x = 2", metadata={"tags": ["injected-parameters"]})
    notebook.cells = [kept, injected]
    path = tmp_path / "notebook.ipynb"
    nbformat.write(notebook, path)
    hook = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"][0]
    assert hook["entry"] == "nbstripout"
    subprocess.run([sys.executable, "-m", "nbstripout", *hook["args"], path], check=True)
    stripped = nbformat.read(path, as_version=4)
    assert dict(stripped.metadata) == {}
    (cell,) = stripped.cells
    assert (cell.id, cell.execution_count) == ("readable-name", None)
    assert dict(cell.metadata) == {"tags": ["parameters"]}


def test_readme_leads_to_every_notebook():
    text = read("README.md")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"notebooks/{path.name}" in text


def test_readme_opens_with_no_accuracy_that_notebook_5_does_not_decide():
    opening = read("README.md").split("\n\n")[1]
    assert not re.search(r"learns? (more|better)|more accurate|outperform|improve", opening)


def test_links_between_files_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "data/README.md"):
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", read(name)):
            assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"


@pytest.fixture(scope="module")
def tracked():
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_is_large(tracked):
    large = {path.name: path.stat().st_size for path in tracked if path.stat().st_size > 2**20}
    assert not large


def test_nothing_is_left_unfinished(tracked):
    # Written in pieces, so that this file does not find itself.
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|NotImplemented" + r"Error)\b")
    for path in tracked:
        if path.suffix in {".py", ".ipynb", ".md", ".yml", ".toml"}:
            found = marks.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.name}: {found}"


def test_nothing_looks_outside_the_checkout(tracked):
    outside = "../" + "shared"
    for path in tracked:
        if path == ROOT / ".ci" / "run":  # hands the folder to tests, which skip without it
            continue
        assert outside not in path.read_text(encoding="utf-8", errors="ignore"), path.name
