"""One line that says on what a benchmark ran, and where its result is kept."""

import datetime
import os
import platform
from pathlib import Path

import torch


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def units() -> list[str]:
    """The processor's vector and matrix units, the fastest last."""
    able = torch.cpu.get_capabilities()
    return [k for k in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if able.get(k)]


def machine() -> str:
    gpu = f" {torch.cuda.get_device_name()};" if torch.cuda.is_available() else ""
    return (
        f"{processor()} ({', '.join(units()) or 'no vector units known'}), "
        f"{torch.get_num_threads()} of {os.cpu_count()} threads, {platform.system()};{gpu} "
        f"Python {platform.python_version()}, torch {torch.__version__}."
    )


def save(name: str, lines: list[str]) -> None:
    """Write a result to ``results/<name>_<date>_<hardware>.md``: machines do not overwrite."""
    names = [torch.cuda.get_device_name().split()[-1].lower()] if torch.cuda.is_available() else []
    kind = (names or units()[-1:] or [platform.machine()])[0]
    path = Path(__file__).parent / "results" / f"{name}_{datetime.date.today()}_{kind}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\nSaved {path}")
