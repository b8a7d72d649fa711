# Each command sets up .venv by itself. Settings: PYTHON=python3.12 chooses the interpreter for a
# new .venv; CPU_TORCH=yes or no decides whether it gets a torch without CUDA, else the machine does;
# ARGS="..." is handed on, as in: make reproduce ARGS="--only 05 --jobs 2"

PYTHON ?=
CPU_TORCH ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ARGS ?=
VENV_PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help lab reproduce site test test-all test-recipes bench setup

help:
	@echo "make lab        open the course in JupyterLab"
	@echo "make reproduce  run every notebook, write the report, and make the site of both"
	@echo "make site       the executed course, slides, report and API: runs/site/index.html"
	@echo "make test       check style, run the tests and the quick notebooks, cut short"
	@echo "make test-all   the same with what takes long: all profiles, kills again and again, a browser"
	@echo "make test-recipes  run docs/recipes.md in an environment with the libraries that it names"
	@echo "make bench      time losses and training side by side with plain code (ARGS=--save keeps it)"
	@echo "Options: PYTHON=python3.12 for a new .venv, CPU_TORCH=yes or no for its torch (by default"
	@echo "without CUDA where no GPU is found), ARGS=\"...\" for the command itself."

# Jupyter makes a new token at each start and prints the address that holds it. It offers the kernel
# of .venv alone, whatever else is installed; an empty address keeps it from kernels elsewhere.
lab: setup
	@JUPYTER_GATEWAY_URL= $(VENV_PYTHON) -m jupyterlab --ServerApp.ip=127.0.0.1 \
	    --ServerApp.kernel_spec_manager_class=ttm_lab.course.execute.OwnKernel \
	    --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb \
	    $$([ "$$(id -u)" -ne 0 ] || echo --allow-root) $(ARGS)

# The whole course leaves its reader on the site; a part of it, on its report.
reproduce: setup
	@$(VENV_PYTHON) -m ttm_lab reproduce $(ARGS)
	@[ -n "$(ARGS)" ] || $(VENV_PYTHON) docs/build.py

# Runs the course first unless runs/reproduce/quick holds it, finished and from these notebooks.
site: setup
	@$(VENV_PYTHON) docs/build.py $(ARGS)

# One thread a worker: several workers with a thread per core each slow one another down.
PYTEST = OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n auto --maxprocesses 4 --dist worksteal \
    --durations 10

test: setup
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m ruff check .
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: setup
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m ruff check .
	@$(PYTEST) $(ARGS)

# An environment of its own, so that the newest versions of other people's trainers decide nothing
# about the course's. It looks into .venv for what it lacks: torch is not installed twice.
RECIPES := .venv-recipes/bin/python
SITE_PACKAGES = import sysconfig; print(sysconfig.get_path('purelib'))
test-recipes: setup
	@made_from="$$(cat .venv/made-from docs/recipes-requirements.txt | cksum)"; \
	if [ "$$(cat .venv-recipes/made-from 2>/dev/null)" != "$$made_from" ]; then \
	    echo "Setting up .venv-recipes: a minute or two, only once ..."; \
	    $(VENV_PYTHON) -m venv --clear .venv-recipes || exit 1; \
	    echo "import site; site.addsitedir('$$($(VENV_PYTHON) -c "$(SITE_PACKAGES)")')" \
	        > "$$($(RECIPES) -c "$(SITE_PACKAGES)")/below.pth"; \
	    $(RECIPES) -m pip install --quiet --disable-pip-version-check \
	        --requirement docs/recipes-requirements.txt || exit 1; \
	    echo "$$made_from" > .venv-recipes/made-from; \
	fi
	@TTM_LAB_RECIPES=1 OMP_NUM_THREADS=1 $(RECIPES) -m pytest -n auto --maxprocesses 2 \
	    --durations 5 tests/test_recipes.py tests/test_features.py \
	    tests/test_torchdistill.py $(ARGS)

bench: setup
	@$(VENV_PYTHON) benchmarks/losses.py $(ARGS)
	@$(VENV_PYTHON) benchmarks/speed.py $(ARGS)
	@$(VENV_PYTHON) benchmarks/imagenet.py --rounds 2 $(ARGS)
	@$(VENV_PYTHON) benchmarks/notebook5.py $(ARGS)

# uv installs where it is there, pip where not or where uv cannot. Where no GPU is found, torch comes
# without CUDA, 5 GB less, if an index has such a build of torchvision, too: the two do not mix.
UV ?= uv
GPU_FOUND = { [ "$$(uname)" != Linux ] || nvidia-smi -L >/dev/null 2>&1 || [ -e /dev/nvidia0 ] || \
    [ -e /dev/kfd ]; }
# The three newest builds of a package without CUDA, in pip's own index and in PyTorch's.
CPU_BUILDS = $(VENV_PYTHON) -m pip index versions --retries 0 --timeout 15 \
    --extra-index-url "$(TORCH_INDEX)" $(1) 2>/dev/null | sed -n 's/^Available versions: //p' | tr -d ' ' | tr ',' '\n' | \
    grep '+cpu$$' | head -n 3
TORCH_VERSION = from importlib.metadata import version; print(version('torch'))

# .venv/made-from says which folder and which pyproject.toml the environment was made from. It is
# written last, so that an interrupted set-up starts again from nothing.
setup:
	@made_from="$$(pwd) $$(cksum < pyproject.toml)"; \
	if [ "$$(cat .venv/made-from 2>/dev/null)" = "$$made_from" ] && $(VENV_PYTHON) -c ""; then \
	    exit 0; \
	fi; \
	case "$$(cat .venv/made-from 2>/dev/null)" in \
	"$$(pwd) "*) $(VENV_PYTHON) -c "" 2>/dev/null && usable=yes;; \
	esac; \
	rm -f .venv/made-from; \
	if [ -z "$$usable" ]; then \
	    found=; seen=; \
	    for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11); do \
	        version=$$("$$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' \
	            2>/dev/null) || { seen="$$seen $$candidate: not found or does not run."; continue; }; \
	        case "$$version" in \
	        3.11.*|3.12.*|3.13.*) ;; \
	        *) seen="$$seen $$candidate: Python $$version."; continue;; \
	        esac; \
	        "$$candidate" -c "import ensurepip, venv" 2>/dev/null || { \
	            seen="$$seen $$candidate: Python $$version without venv"; \
	            seen="$$seen (Debian, Ubuntu: apt install python$${version%.*}-venv)."; continue; }; \
	        found="$$candidate"; break; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "TTM Lab needs Python 3.11, 3.12 or 3.13. Looked at:$$seen" >&2; \
	        echo "Install one of them, or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	        exit 1; \
	    fi; \
	    echo "Setting up .venv with Python $$version: a few minutes, up to 6 GB, only once ..."; \
	    "$$found" -m venv --clear .venv || exit 1; \
	    cpu="$(CPU_TORCH)"; \
	    [ -n "$$cpu" ] || { $(GPU_FOUND) && cpu=no || cpu=yes; }; \
	else \
	    echo "pyproject.toml has changed: bringing .venv up to date ..."; \
	    $(VENV_PYTHON) -c "$(TORCH_VERSION)" 2>/dev/null | grep -q "+cpu$$" && cpu=yes || cpu=no; \
	fi; \
	install() { \
	    if command -v "$(UV)" >/dev/null; then \
	        "$(UV)" pip install --quiet --python $(VENV_PYTHON) --index-strategy unsafe-best-match \
	            "$$@" --editable ".[notebooks,site,test]" && return; \
	        echo "$(UV) could not install everything: trying pip."; \
	    fi; \
	    $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check "$$@" \
	        --editable ".[notebooks,site,test]"; \
	}; \
	installed=; \
	if [ "$$cpu" = yes ]; then \
	    visions=$$($(call CPU_BUILDS,torchvision)); torches=$$($(call CPU_BUILDS,torch)); \
	    for vision in $$visions; do for torch in $$torches; do \
	        [ -n "$$installed" ] || { install --extra-index-url "$(TORCH_INDEX)" "torch==$$torch" \
	            "torchvision==$$vision" >/dev/null 2>&1 && installed="$$torch"; }; \
	    done; done; \
	    if [ -n "$$installed" ]; then \
	        echo "This torch is without CUDA: CPU_TORCH=no takes the usual one."; \
	    else \
	        echo "No index has a torch without CUDA that fits torchvision: taking the usual one."; \
	    fi; \
	fi; \
	[ -n "$$installed" ] || install || exit 1; \
	echo "$$made_from" > .venv/made-from; \
	echo "Set-up finished, with torch $$($(VENV_PYTHON) -c "$(TORCH_VERSION)")."
