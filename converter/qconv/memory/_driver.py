"""Memory on an NVIDIA device, as its driver tells it: for engines whose allocations nobody sees.

``nvidia-smi`` is asked, which comes with the driver. It lists what each process takes, but not in
every container, nor of slices of a device (MIG): then what is in use on the whole device must do,
and other processes that come and go meanwhile count as well.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

from qconv.errors import NotEnoughResources
from qconv.memory._peaks import Peak

#: Seconds between two looks; the driver's tool takes about so long itself.
_INTERVAL = 0.05

#: The longest that it may take, where a driver does not answer.
_TIMEOUT = 30

_MIB = 1 << 20

#: How names of slices of a device begin.
_SLICE = "MIG-"


class DevicePeak(Peak):
    """The most that this process has on a device within a ``with``.

    name: of the device, by which the driver knows it
    """

    def __init__(self, name: str) -> None:
        super().__init__(lambda: nvml_used(name) or 0, _INTERVAL)
        self._name, self._own = name, 0

    @property
    def nbytes(self) -> int:
        """Bytes of this process; where it is not listed, what the whole device has more in use."""
        return self._own or super().nbytes

    @property
    def whole_device(self) -> bool:
        """The figure is of the whole device, as the driver does not list this process."""
        return not self._own

    def _look(self) -> None:
        super()._look()
        self._own = max(self._own, nvml_process(self._name, os.getpid()) or 0)


def device_peak(name: str) -> DevicePeak:
    """Watch a device. name: as :func:`driver_name` gives it.

    Raises:
        NotEnoughResources: its driver does not say.
    """
    if nvml_used(name) is None:
        slice_of = name.startswith(_SLICE)
        then = "measure on a whole device" if slice_of else "install the driver's tools"
        raise NotEnoughResources(
            f"device {name}: nvidia-smi does not say what is in use on it"
            f"{', a slice of a device (MIG)' if slice_of else ''}; {then}, or measure on the CPU"
        )
    return DevicePeak(name)


def nvml_used(name: str) -> int | None:
    """Bytes in use on an NVIDIA device, by whomever, as its driver says; None where it does not.

    Also what CUDA contexts and other processes take, which no allocator knows.
    """
    for line in _asked(name, "--query-gpu=memory.used"):
        return _mib(line)
    return None


def nvml_process(name: str, process: int) -> int | None:
    """Bytes that a process has on a device, its CUDA context included; None where none is listed.

    process: its id
    """
    for line in _asked(name, "--query-compute-apps=pid,used_memory"):
        number, _, used = line.partition(",")
        if number.strip() == str(process):
            return _mib(used)
    return None


def _mib(text: str) -> int | None:
    """Of a number of MiB, the bytes; None of ``[N/A]`` and the like."""
    text = text.strip()
    return int(text) * _MIB if text.isdecimal() else None


def _asked(name: str, query: str) -> Iterator[str]:
    """The lines of an answer; none where there is no driver, or it refuses."""
    command = ["nvidia-smi", f"--id={name}", query]
    try:
        said = subprocess.run(  # noqa: S603 - a fixed command
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return
    yield from said.stdout.splitlines()


def driver_name(index: int) -> str:
    """What the driver calls a device: ``GPU-`` and its UUID, or else its number.

    CUDA counts only devices that it may see, the fastest first, but the driver by their places on
    the bus; so where torch knows the UUID, that is what counts.

    index: of the device, as CUDA counts
    """
    import torch

    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    named = visible[index] if index < len(visible) and visible[index] else str(index)
    if named.startswith(_SLICE) or not torch.cuda.is_available():
        return named
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return named if uuid is None else f"GPU-{uuid}"
