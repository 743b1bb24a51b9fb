"""A cached kernel runs only if no kernel source has changed since it was compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qconv.kernels
from qconv.kernels import jit

# Stands for a kernel and the helper it is compiled from; small, so that the test is quick.
HELPER = """from .jit import inner

@inner
def step(x):
    return x + 1
"""
KERNEL = """from .helper import step
from .jit import kernel

@kernel
def run(x):
    return step(x)
"""
RUN = """from probe.entry import run
print(run(1), *run.stats.cache_hits.values(), *run.stats.cache_misses.values())
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "code" / "probe"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    shutil.copy(str(jit.__file__), folder / "jit.py")
    (folder / "helper.py").write_text(HELPER)
    (folder / "entry.py").write_text(KERNEL)
    return folder


def run(package: Path, **environment: str) -> list[str]:
    inherited = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-B", "-c", RUN],
        cwd=package.parent,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_kernel_is_compiled_once(package: Path) -> None:
    assert run(package) == ["2", "1"]  # one miss
    assert run(package) == ["2", "1"]
    assert len(list(package.glob("__pycache__/*.nbc"))) == 1


def test_a_changed_helper_is_never_run_stale(package: Path) -> None:
    assert run(package)[0] == "2"
    helper = package / "helper.py"
    before = helper.stat()
    # As an upgrade can: another constant, the same size and the same time.
    helper.write_text(HELPER.replace("x + 1", "x + 7"))
    os.utime(helper, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(package)[0] == "8"


def test_a_constant_changed_in_place_is_never_run_stale(package: Path) -> None:
    entry = package / "entry.py"
    entry.write_text(KERNEL.replace("step(x)", "x * 3"))
    before = entry.stat()
    assert run(package)[0] == "3"
    entry.write_text(KERNEL.replace("step(x)", "x * 5"))
    os.utime(entry, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(package)[0] == "5"


def test_the_cache_stays_where_numba_puts_it(package: Path, tmp_path: Path) -> None:
    assert run(package, NUMBA_CACHE_DIR=str(tmp_path / "cache"))[0] == "2"
    assert list((tmp_path / "cache").rglob("*.nbi"))
    assert not list(package.rglob("*.nbi"))


def test_every_kernel_is_cached_under_the_digest_of_all_sources() -> None:
    from numba.core.dispatcher import Dispatcher

    from qconv.kernels import ggml_block, ggml_superblock, search_block, search_superblock, uniform

    kernels = [
        value
        for module in (ggml_block, ggml_superblock, search_block, search_superblock, uniform)
        for value in vars(module).values()
        if isinstance(value, Dispatcher) and not value.targetoptions.get("no_cpython_wrapper")
    ]
    assert len(kernels) >= 17
    assert all(isinstance(each._cache, jit._KernelCache) for each in kernels)


def test_the_digest_covers_every_source_file(tmp_path: Path) -> None:
    source = Path(str(qconv.kernels.__file__)).parent
    digests = {jit.sources_digest(source)}
    for number, edited in enumerate(sorted(source.glob("*.py"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file in source.glob("*.py"):
            shutil.copy(file, folder)
        assert jit.sources_digest(folder) in digests
        with (folder / edited.name).open("a") as file:
            file.write("#")
        jit.sources_digest.cache_clear()
        digests.add(jit.sources_digest(folder))
    assert len(digests) == 1 + len(list(source.glob("*.py")))
