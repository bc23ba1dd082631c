"""Generated Python, run where it can do no harm; or refused where that cannot be had.

1. ``unshare`` gives namespaces without a network and with process ids of their own.
2. A small shell script builds a root directory in memory: /usr, /lib and the interpreter read-only, three devices,
   and /work, the only place for files. No /proc, no /home, no sockets of the host.
3. ``chroot`` and ``setpriv`` leave no capability, no way to new ones and an empty environment.
4. The harness sets limits, says that it is ready, runs the program, and then says a secret: a program that exits
   early, whatever its status, has not passed.

Everything dies with the first process. A sandbox that does not say that it is ready is broken, and no program is
blamed for it.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO

from checkweigh.errors import ScorerError

READY = b"ready\n"
OUTPUT = 4000  # bytes of output that are kept
END_S = 5.0  # for a killed sandbox to be gone
TOOLS = ("unshare", "setpriv", "chroot", "mount", "sh", "env")
_BUILD = """
set -e
root=$1 work=$2 prefix=$3
shift 3
mount -t tmpfs -o "size=$work,nr_inodes=4096,mode=755" tmpfs "$root"
show() {
    [ -e "$root$1" ] && return
    if [ -L "$1" ]; then cp -P "$1" "$root$1"
    elif [ -d "$1" ]; then
        mkdir -p "$root$1"
        mount --rbind "$1" "$root$1"
        mount -o remount,bind,ro,nosuid,nodev "$root$1"
    fi
}
for folder in /usr /bin /lib /lib32 /lib64 "$prefix"; do show "$folder"; done
mkdir "$root/dev" "$root/work"
chmod 1777 "$root/work"
for device in null zero urandom; do : > "$root/dev/$device"; mount --bind /dev/$device "$root/dev/$device"; done
exec chroot "$root" "$@"
"""
_HARNESS = """
import os, resource, sys

def main():
    said, cpu, memory, size, processes = map(int, sys.argv[1:])
    os.chdir("/work")
    for what, limit in (
        (resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_NPROC, processes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (limit, limit))
    os.write(said, b"ready\\n")
    secret, _, program = sys.stdin.buffer.read().partition(b"\\n")
    me = os.getpid()
    exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
    if os.getpid() == me:
        os.write(said, secret)
    os._exit(0)

main()
"""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What a program may use: seconds of CPU, bytes of memory and of one file, processes and threads.

    The wall limit is wide, because a busy host must not turn a right program into a wrong one.
    """

    cpu_s: int = 5
    memory: int = 256 << 20  # of each process
    file: int = 1 << 20
    processes: int = 8
    wall_s: float = 30.0
    work: int = 32 << 20  # of all files


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """The result of one program; ``output`` is the beginning of what it wrote."""

    passed: bool
    timed_out: bool
    output: str


class Sandbox:
    """``run(program)``; ScorerError when it is made on a host that cannot isolate."""

    def __init__(self, limits: SandboxLimits) -> None:
        self.limits = limits
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if not sys.platform.startswith("linux") or missing:
            why = f"no {', '.join(missing)}" if missing else f"this is {sys.platform}"
            raise ScorerError(
                f"generated code is only run in a sandbox, which needs Linux with util-linux: {why}"
            )
        if not self.run("pass").passed:
            raise ScorerError("generated code is only run in a sandbox, and the one here cannot run 'pass'")

    def run(self, program: str) -> ProgramResult:
        """Run a program in an empty folder. ScorerError when the sandbox itself fails."""
        secret = secrets.token_hex(16).encode()
        root = Path(tempfile.mkdtemp(prefix="checkweigh-sandbox-"))
        theirs = -1
        ours, theirs = os.pipe()
        try:
            with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as output:
                source.write(secret + b"\n" + program.encode("utf-8", "replace"))
                source.seek(0)
                child = subprocess.Popen(
                    self._command(root, theirs), stdin=source, stdout=output, stderr=subprocess.STDOUT,
                    pass_fds=(theirs,), start_new_session=True, cwd="/", env={"PATH": os.environ.get("PATH", "")},
                )  # fmt: skip
                os.close(theirs)
                theirs = -1
                timed_out = self._wait(child)
                message, text = _until_closed(ours), _beginning(output)
        finally:
            os.close(ours)
            if theirs >= 0:
                os.close(theirs)
            root.rmdir()
        if not message.startswith(READY):
            raise ScorerError(
                f"generated code is only run in a sandbox, which cannot be had here: {text.strip()}"
            )
        passed = not timed_out and child.returncode == 0 and message == READY + secret
        return ProgramResult(passed=passed, timed_out=timed_out, output=text)

    def _command(self, root: Path, ready_fd: int) -> list[str]:
        limits = self.limits
        prefix = os.path.realpath(sys.base_prefix)
        python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
        namespaces, drop = (
            ["--user", "--map-root-user"],
            ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"],
        )
        if os.geteuid() == 0:  # becomes nobody in particular instead, so that the limit of processes holds
            number = str(1_000_000_000 + secrets.randbelow(1_000_000_000))
            namespaces, drop = [], [f"--reuid={number}", f"--regid={number}", "--clear-groups", *drop]
        return [
            "setpriv", "--pdeathsig=KILL",
            "unshare", *namespaces, "--net", "--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child",
            "sh", "-c", _BUILD, "sandbox", str(root), str(limits.work), prefix,
            "env", "-i", "LANG=C.UTF-8", "PATH=/usr/bin:/bin", "PYTHONHASHSEED=0", "setpriv", *drop,
            python, "-B", "-P", "-s", "-S", "-c", _HARNESS, str(ready_fd), *map(str, astuple(limits)[:4]),
        ]  # fmt: skip

    def _wait(self, child: subprocess.Popen[bytes]) -> bool:
        """Wait for the child, or kill it and its group when the time is up; returns whether it was."""
        try:
            child.wait(self.limits.wall_s)
        except subprocess.TimeoutExpired:
            return True
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        return False


def _until_closed(pipe: int) -> bytes:
    """Everything written to the pipe until its last writer is gone. Raises ScorerError when one stays."""
    message = b""
    deadline = time.monotonic() + END_S
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(pipe, 1 << 16)
        if not part:
            return message
        message = (message + part)[: 1 << 16]
    raise ScorerError("the sandbox of generated code could not be ended")


def _beginning(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read(OUTPUT).decode("utf-8", "replace")
