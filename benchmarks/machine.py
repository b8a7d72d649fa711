"""One line that says on what a benchmark ran."""

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


def machine() -> str:
    able = torch.cpu.get_capabilities()
    units = [k for k in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if able.get(k)]
    gpu = f" {torch.cuda.get_device_name()};" if torch.cuda.is_available() else ""
    return (
        f"{processor()} ({', '.join(units) or 'no vector units known'}), "
        f"{torch.get_num_threads()} of {os.cpu_count()} threads, {platform.system()};{gpu} "
        f"Python {platform.python_version()}, torch {torch.__version__}."
    )
