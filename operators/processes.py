"""Small tools for programs of the operating system: run, find and end them."""

import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from winback.models.errors import StoreUnavailableError

HOST = "127.0.0.1"  # never reachable from another machine
STOP_SECONDS = 30  # per signal; a fast shutdown takes well under a second
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")  # NVIDIA's, AMD's
Identity = tuple[int, float]  # process id and its start time: the number alone is used again


def run(command: Sequence[object], run_as: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end. Output goes through a file: the server would keep a pipe open for ever."""
    group = pwd.getpwnam(run_as).pw_gid if run_as else None
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            user=run_as,
            group=group,
            extra_groups=[] if run_as else None,
            cwd="/",  # the stand-in may not enter the caller's folder
            start_new_session=True,  # the terminal's Ctrl-C ends us, and we end the servers
        )
        output.seek(0)
        done.stdout = output.read()
    return done


def free_port(preferred: int) -> int:
    """Return ``preferred`` if nobody listens there, else a free TCP port of the loopback."""
    for port in (preferred, 0):  # 0: the system chooses
        with suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise StoreUnavailableError(f"No free TCP port on {HOST}.")


def write_private(file: Path, text: str) -> None:
    """Replace ``file`` in one step, readable by its owner only."""
    new = file.with_name(file.name + ".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(text)
    new.replace(file)


def read_pid(file: Path) -> int | None:
    """Read the process id in the first line of a pid file; None without one."""
    try:
        return int(file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def find_process(pid_file: Path, name: str, folder: Path) -> psutil.Process | None:
    """The process of ``pid_file`` if it still is that server in that folder, else None."""
    pid = read_pid(pid_file)
    if pid is None:
        return None
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.name().startswith(name) and Path(process.cwd()) == folder:
            return process
    return None


def identity(process: psutil.Process) -> Identity:
    """What tells a process from a later one with the same number."""
    return process.pid, process.create_time()


def is_alive(who: Identity) -> bool:
    """Whether the process still runs, and is not another one with the same number."""
    pid, started = who
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        moved = abs(process.create_time() - started)  # seconds; setting the clock moves it a bit
        return bool(moved < 5 and process.status() != psutil.STATUS_ZOMBIE)
    return False


def end(process: psutil.Process | None, signals: Sequence[signal.Signals]) -> None:
    """Send the signals one after the other until the process is gone."""
    if process is None:
        return
    target = identity(process)
    for number in signals:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            if not is_alive(target):
                return
            time.sleep(0.02)
    raise StoreUnavailableError(f"Process {process.pid} ({process.name()}) cannot be stopped.")


def limit_memory(gigabytes: float | None) -> None:
    """Let this process and those that it starts ask for so much memory each (10⁹ bytes).

    Beyond it an allocation fails as MemoryError, while the machine and its other processes go on.
    What counts is what was asked for, about 1 GB more than what is used: Arrow reserves ahead.
    Linux only; not beside a GPU, whose driver maps far more than there is.
    """
    if sys.platform != "linux" or any(Path(driver).exists() for driver in GPU_DRIVERS):
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = resource.RLIM_INFINITY if gigabytes is None else int(gigabytes * 1e9)
    if hard != resource.RLIM_INFINITY:
        wanted = hard if wanted == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, 10⁶ bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage's, this figure does not start at the parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
