import subprocess
import sys

import pytest

from ttm_lab import cli, reproduce, runs, studies

# Imports every module of the library as if only the plain dependencies were installed.
WITHOUT_EXTRAS = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    names = set(sys.argv[1].split(","))
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import ttm_lab
"""
EXTRAS = (
    "IPython,ipykernel,ipywidgets,jupyterlab,matplotlib,nbclient,nbconvert,nbformat,papermill,"
    "psutil,seaborn,sympy,hypothesis,pytest,torchmetrics,yaml"
)


def without_extras(code):
    command = [sys.executable, "-c", WITHOUT_EXTRAS + code, EXTRAS]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_library_needs_no_notebook_packages():
    modules = "probability losses data models runs training analysis evidence studies cli"
    code = f"import importlib\nfor m in {modules.split()}: importlib.import_module('ttm_lab.' + m)"
    done = without_extras(code)
    assert done.returncode == 0, done.stderr


def test_batch_without_notebook_packages_says_what_to_install():
    done = without_extras("from ttm_lab.cli import main\nsys.exit(main(['reproduce']))")
    assert done.returncode == 2
    assert "pip install 'ttm-lab[notebooks]'" in done.stderr


def test_options_reach_the_batch(monkeypatch):
    seen = {}
    monkeypatch.setattr(reproduce, "reproduce", lambda *a, **k: seen.update(profile=a[0], **k) or 0)
    words = "--profile paper --only 01,02 05 --jobs 3 --timeout 9.5 --name n --root r --fresh"
    given = ["-p", "max_steps=2", "-p", "data=cifar10", "-p", "flag=None", "-p", "path=a=b"]
    assert cli.main(["reproduce", *words.split(), *given]) == 0
    assert seen == {
        "profile": "paper",
        "only": ["01", "02", "05"],
        "parameters": {"max_steps": 2, "data": "cifar10", "flag": None, "path": "a=b"},
        "jobs": 3,
        "timeout": 9.5,
        "name": "n",
        "root": "r",
        "fresh": True,
    }


@pytest.mark.parametrize("words", [["-p", "value"], ["-p", "a b=1"], ["--profile", "huge"]])
def test_mistyped_options_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["reproduce", *words])
    assert stopped.value.code == 2
    assert words[1] in capsys.readouterr().err


def test_a_search_adds_its_seeds_and_keeps_the_others(tmp_path, monkeypatch, capsys):
    settings = tmp_path / "settings.csv"
    kept = studies.chosen_settings()
    settings.write_text(kept.to_csv(index=False))
    monkeypatch.setattr(studies, "SETTINGS_FILE", settings)
    found = kept[kept["seed"] == 0].assign(seed=99)
    monkeypatch.setattr(studies, "search", lambda seeds, path, *, trials: found)
    command = ["search-digits", "--seeds", "99", "--output", str(tmp_path / "new.csv")]
    assert cli.main(command) == 0
    merged = runs.read_table(settings)
    assert set(merged["seed"]) == {*kept["seed"], 99}
    assert len(merged) == len(kept) + len(found)
    budget = ["search-digits", "--seeds", "99", "--trials", "1"]
    assert cli.main(budget) == 2
    assert "would not be an equal budget" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--seeds", "5-3"], ["--seeds", "1", "--trials", "0"]])
def test_a_search_of_nothing_is_refused(words):
    with pytest.raises(SystemExit):
        cli.main(["search-digits", *words])
