"""The Makefile's set-up, with a stand-in for Python that only notes what it is asked to do."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from contextlib import suppress
from urllib.parse import quote

import psutil
import pytest
from lab import PORT, await_

from ttm_lab.course import execute
from ttm_lab.files import find_root

# Makes .venv with a copy of itself; installing fails as long as a file "offline" is there. A file
# "builds" lists by package what an index has; only what a file "fits" says can be installed.
STAND_IN = """#!/bin/sh
case "$*" in
  *version_info*) echo "{version}";;
  *"import ensurepip, venv"*) exit {venv};;
  "-m venv --clear .venv")
    rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo venv >> done;;
  *"index versions"*)
    for package; do :; done
    echo "Available versions: $(sed -n "s/^$package //p" builds 2>/dev/null)";;
  *"pip install"*)
    case "$*" in *torch==*) echo "$*" | grep -q "$(cat fits)" || exit 1;; esac
    echo "$*" >> done; test ! -e offline;;
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
        settings = {"PYTHON": str(self.python), "CPU_TORCH": "no", "UV": "no-uv", **settings}
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


BUILDS = "torch 2.15.0, 2.15.0+cpu, 2.14.1+cpu, 2.14.1\ntorchvision 0.29.1+cpu, 0.29.1\n"


def test_without_a_gpu_the_builds_without_cuda_that_fit_each_other_are_taken(checkout):
    (checkout.folder / "builds").write_text(BUILDS)
    (checkout.folder / "fits").write_text("torch==2.14.1+cpu torchvision==0.29.1+cpu")
    done = checkout.make(CPU_TORCH="yes")
    assert done.returncode == 0, done.stderr
    assert "This torch is without CUDA" in done.stdout
    _, install = checkout.done
    assert install.endswith(
        "--extra-index-url https://download.pytorch.org/whl/cpu "
        "torch==2.14.1+cpu torchvision==0.29.1+cpu --editable .[notebooks,site,test]"
    )


@pytest.mark.parametrize(
    ("builds", "fits"),
    [
        ("", ""),
        ("torch 2.13.0+cpu\ntorchvision 0.28.0\n", ""),  # the two do not mix
        (BUILDS, "none that there are"),
    ],
    ids=["no build", "torch alone", "no pair"],
)
def test_without_such_builds_the_usual_torch_is_taken_and_it_says_so(checkout, builds, fits):
    (checkout.folder / "builds").write_text(builds)
    (checkout.folder / "fits").write_text(fits)
    done = checkout.make(CPU_TORCH="yes")
    assert done.returncode == 0, done.stderr
    assert "No index has a torch without CUDA that fits torchvision" in done.stdout
    _, install = checkout.done
    assert install.endswith("--disable-pip-version-check --editable .[notebooks,site,test]")


def test_where_a_gpu_is_found_the_usual_torch_is_taken(checkout):
    (checkout.folder / "builds").write_text(BUILDS)
    (checkout.folder / "fits").write_text("torch")
    program = checkout.folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = f"{checkout.folder}{os.pathsep}{os.environ['PATH']}"
    assert checkout.make(CPU_TORCH="", PATH=path).returncode == 0
    assert "torch==" not in checkout.done[1]


@pytest.mark.parametrize("status", [0, 1])
def test_uv_installs_where_it_is_there_and_pip_where_it_cannot(checkout, status):
    program = checkout.folder / "uv"
    program.write_text(f'#!/bin/sh\necho "uv $*" >> done\nexit {status}\n')
    program.chmod(0o755)
    done = checkout.make(UV=str(program))
    assert done.returncode == 0, done.stderr
    assert ("trying pip" in done.stdout) == bool(status)
    tried, *rest = checkout.done[1:]
    assert tried.startswith("uv pip install --quiet --python .venv/bin/python ")
    assert tried.endswith(" --editable .[notebooks,site,test]")
    assert len(rest) == status


# A package to be installed, whose back end hands out a wheel that lies ready.
PACKAGE = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "course"
version = "1"
dependencies = ["torch>=2.11", "torchvision>=0.26"]
optional-dependencies = { notebooks = [], site = [], test = [] }
"""
BACKEND = """
import shutil

def build_editable(folder, *_):
    return shutil.copy("wheels/course-1-py3-none-any.whl", folder).split("/")[-1]
"""


def wheel(folder, name, version, *needs):
    """An installable wheel of one module that holds its version."""
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    lines += [f"Provides-Extra: {extra}" for extra in ("notebooks", "site", "test")]
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        tags = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n")


def index(folder, *wheels):
    """A package index of files, with its address."""
    for name, version, *needs in wheels:
        wheel(folder / name, name, version, *needs)
        links = [f'<a href="{quote(f.name)}">{f.name}</a>' for f in (folder / name).glob("*.whl")]
        (folder / name / "index.html").write_text("<!doctype html>" + "\n".join(links))
    return folder.as_uri()


VISION = ("torchvision", "0.29.1", "torch==2.14.1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (
            [
                ("torch", "2.15.0+cpu"),
                ("torch", "2.14.1+cpu"),
                ("torchvision", "0.29.1+cpu", "torch==2.14.1"),
            ],
            "2.14.1+cpu 0.29.1+cpu",
        ),
        ([("torch", "2.14.1+cpu")], "2.14.1 0.29.1"),
        (
            [("torch", "2.5.0+cpu"), ("torchvision", "0.20.0+cpu", "torch==2.5.0")],
            "2.14.1 0.29.1",  # below what the package needs
        ),
    ],
    ids=["fits", "torch alone", "too old"],
)
def test_pip_takes_what_fits_from_a_local_index(checkout, monkeypatch, other, expected):
    usual = index(checkout.folder / "usual", ("torch", "2.14.1"), VISION)
    second = index(checkout.folder / "second", *other)
    wheel(checkout.folder / "wheels", "course", "1", "torch>=2.11", "torchvision>=0.26")
    (checkout.folder / "pyproject.toml").write_text(PACKAGE)
    (checkout.folder / "backend.py").write_text(BACKEND)
    for name in [name for name in os.environ if name.startswith(("PIP_", "PYTHONPATH"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", usual)
    done = checkout.make(PYTHON=sys.executable, CPU_TORCH="yes", TORCH_INDEX=second)
    assert done.returncode == 0, done.stderr
    code = "import torch, torchvision; print(torch.version, torchvision.version)"
    python = checkout.folder / ".venv" / "bin" / "python"
    shown = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == expected
    assert f"Set-up finished, with torch {expected.split()[0]}.\n" in done.stdout
    assert ("This torch is without CUDA" in done.stdout) == ("+cpu" in expected)


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
    options = f"ARGS=--no-browser --port={PORT} --LabApp.news_url=None --IdentityProvider.token=t"
    command = ["make", "lab", options]
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, cwd=checkout.folder, env=os.environ | variables, stdout=output, stderr=output
        )
    yield server, tmp_path / "runtime"
    execute.kill(server)
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

    def kernelspecs():  # its file is there before it listens
        with suppress(OSError):
            return ask("api/kernelspecs")

    kernels = await_(kernelspecs)["kernelspecs"]
    assert list(kernels) == ["python3"]
    assert kernels["python3"]["spec"]["argv"][0] == sys.executable
    for name in ("python3", "foreign"):  # whichever a notebook asks for
        ask("api/kernels", json.dumps({"name": name}).encode())
    family = psutil.Process(server.pid).children(recursive=True)
    started = []
    for process in family:
        with suppress(psutil.NoSuchProcess):  # what has ended meanwhile is no kernel
            line = process.cmdline()
            started += [line] if "ipykernel_launcher" in line else []
    assert [line[0] for line in started] == [sys.executable] * 2
