"""The Makefile's set-up, with a stand-in for Python that only notes what it is asked to do."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.request

import psutil
import pytest
from lab import await_

from ttm_lab.files import find_root

# Makes .venv with a copy of itself; installing fails as long as a file "offline" is there.
STAND_IN = """#!/bin/sh
case "$*" in
  *version_info*) echo "{version}";;
  *"import ensurepip, venv"*) exit {venv};;
  "-m venv --clear .venv")
    rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo venv >> done;;
  *"pip install"*) echo "$*" >> done; test ! -e offline;;
  "-m ttm_lab"*) echo "$*" >> done;;
esac
"""

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
pytestmark = needs_make


class Checkout:
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(find_root(__file__) / name, folder)
        self.python = self.stand_in("python3")

    def stand_in(self, name, version="3.12.4", venv=0):
        path = self.folder / name
        path.write_text(STAND_IN.format(version=version, venv=venv))
        path.chmod(0o755)
        return path

    def make(self, target="setup", **settings):
        settings = {"PYTHON": str(self.python), **settings}
        words = [f"{name}={value}" for name, value in settings.items()]
        # A make that runs these tests hands its own settings down.
        handed = {"ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON"}
        clean = {k: v for k, v in os.environ.items() if k not in handed}
        return subprocess.run(
            ["make", target, *words], cwd=self.folder, capture_output=True, text=True, env=clean
        )

    @property
    def done(self):
        log = self.folder / "done"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path / "a path with spaces")


def test_sets_up_once_and_installs_the_extras(checkout):
    first = checkout.make("reproduce", ARGS="--only 01")
    assert first.returncode == 0
    assert "Setting up .venv with Python 3.12.4" in first.stdout
    again = checkout.make("reproduce")
    assert (again.stdout, again.stderr) == ("", "")
    venv, install, *commands = checkout.done
    assert venv == "venv"
    assert install.endswith("--editable .[notebooks,site,test]")
    assert commands == ["-m ttm_lab reproduce --only 01", "-m ttm_lab reproduce"]


def test_installs_again_when_pyproject_changed(checkout):
    checkout.make()
    with (checkout.folder / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert "pyproject.toml has changed" in checkout.make().stdout
    assert [line.split()[0] for line in checkout.done] == ["venv", "-m", "-m"]
    os.utime(checkout.folder / "pyproject.toml")  # a new date alone is no change
    checkout.make()
    assert len(checkout.done) == 3


def test_failed_installation_starts_again_from_nothing(checkout):
    (checkout.folder / "offline").touch()
    assert checkout.make().returncode != 0
    (checkout.folder / "offline").unlink()
    assert checkout.make().returncode == 0
    assert [line.split()[0] for line in checkout.done] == ["venv", "-m", "venv", "-m"]


def test_moved_checkout_is_set_up_again(checkout):
    checkout.make()
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    checkout.python = checkout.folder / "python3"
    assert checkout.make().returncode == 0
    assert checkout.done.count("venv") == 2


@pytest.mark.parametrize("version", ["3.10.13", "3.9.2", "2.7.18", "3.14.0"])
def test_other_python_is_named_with_the_remedy(checkout, version):
    checkout.stand_in("python3", version)
    done = checkout.make()
    assert done.returncode != 0
    assert f"Python {version}" in done.stderr
    assert "needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (checkout.folder / ".venv").exists()


def test_python_without_venv_or_absent_is_named(checkout):
    checkout.stand_in("python3", venv=1)
    assert "apt install python3.12-venv" in checkout.make().stderr
    assert "not found" in checkout.make(PYTHON="no-such-python").stderr


@pytest.fixture
def lab(checkout, tmp_path):
    """A real JupyterLab, started by make, among kernelspecs and variables that lead elsewhere."""
    jupyter = tmp_path / "jupyter"
    for kernel in ("python3", "foreign"):
        folder = jupyter / "kernels" / kernel
        folder.mkdir(parents=True)
        spec = {"argv": ["false"], "display_name": "Python 3", "language": "python"}
        (folder / "kernel.json").write_text(json.dumps(spec))
    python = checkout.folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    command = 'echo "$(pwd) $(cksum < pyproject.toml)" > .venv/made-from'
    subprocess.run(["sh", "-c", command], cwd=checkout.folder, check=True)
    variables = {
        "JUPYTER_DATA_DIR": str(jupyter),
        "JUPYTER_DEFAULT_PROVISIONER_NAME": "elsewhere",
        "JUPYTER_GATEWAY_URL": "http://127.0.0.1:9",
        "JUPYTER_PATH": str(jupyter),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
    }
    options = "ARGS=--no-browser --port=0 --LabApp.news_url=None --IdentityProvider.token=t"
    command = ["make", "lab", options]
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, cwd=checkout.folder, env=os.environ | variables, stdout=output, stderr=output
        )
    yield server, tmp_path / "runtime"
    family = [*psutil.Process(server.pid).children(recursive=True), server]
    for process in family:
        process.kill()
    server.wait()
    print(log.read_text(errors="replace"))


def test_lab_runs_the_kernel_of_its_environment_alone(lab):
    server, runtime = lab

    def told():
        assert server.poll() is None
        files = [path for path in runtime.glob("jpserver-*.json") if path.stat().st_size]
        return files and json.loads(files[0].read_text())["url"]

    address = await_(told)

    def ask(path, data=None):
        request = urllib.request.Request(address + path, data, {"Authorization": "token t"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.loads(reply.read())

    kernels = await_(lambda: ask("api/kernelspecs"))["kernelspecs"]
    assert list(kernels) == ["python3"]
    assert kernels["python3"]["spec"]["argv"][0] == sys.executable
    for name in ("python3", "foreign"):  # whichever a notebook asks for
        ask("api/kernels", json.dumps({"name": name}).encode())
    family = psutil.Process(server.pid).children(recursive=True)
    lines = [process.cmdline() for process in family]
    started = [line for line in lines if "ipykernel_launcher" in line]
    assert [line[0] for line in started] == [sys.executable] * 2
