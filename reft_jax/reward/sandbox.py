"""What the Linux kernel takes from a process that runs a generated program: files by Landlock, the rest by seccomp.

Used by `worker`. Lists of forbidden words or modules are no containment, because Python has a hundred ways round them;
the kernel sees what a program does in the end, a system call. Two layers, each for itself where the kernel grants it,
both without privileges and in plain containers:

landlock  Of all files only Python's own libraries can be read and none can be written. Not for reading names: whether a
          path exists, and how large it is, can still be asked.
seccomp   A short list of system calls that computing needs; every other one fails with EPERM, which Python raises as
          PermissionError. So there are no sockets, no processes or threads, no signals to anybody, no files opened for
          writing, no new timers or limits, no debugging. Without Landlock, no file can be opened at all.

Namespaces would add nothing to these two, and Docker's default profile refuses them.
"""

import ctypes
import os
import struct
import sys
import sysconfig

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446  # on every architecture
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# By version of Landlock's ABI: the file, network and scope rights that a ruleset can withhold.
_RIGHTS = {1: (13, 0, 0), 2: (14, 0, 0), 3: (15, 0, 0), 4: (15, 2, 0), 5: (16, 2, 0), 6: (16, 2, 2)}


# The allowed system calls and their numbers on x86_64 and aarch64 (the kernel's `asm/unistd.h`).
# fmt: off
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67), "readv": (19, 65),
    "writev": (20, 66),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "getcwd": (79, 17),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "madvise": (28, 233),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "futex": (202, 98), "membarrier": (324, 283), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "getrusage": (98, 165), "uname": (63, 160), "sysinfo": (99, 179), "getrandom": (318, 278),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177),
    "exit": (60, 93), "exit_group": (231, 94), "openat": (257, 56), "prlimit64": (302, 261),
}
# fmt: on
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of `_CALLS`, and name in `linux/audit.h`

# A classic BPF instruction is (code, jump if true, jump if false, constant); these are the codes that are needed.
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in what a filter sees of a call
_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000  # O_WRONLY O_RDWR O_CREAT O_TRUNC O_APPEND O_TMPFILE


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


class Seccomp:
    """The system-call filter of this machine, made once and installed in every child.

    Args:
        files: whether files may be opened for reading.
    """

    def __init__(self, *, files: bool) -> None:
        code = _filter(os.uname().machine, files)
        self._program = _Program(len(code) // 8, code)
        self._prctl = _libc().prctl

    def install(self) -> None:
        """Filter this process and what it starts, for good.

        Raises:
            OSError: the kernel refused.
        """
        _no_new_privileges()
        if self._prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(self._program), 0, 0):
            raise OSError(ctypes.get_errno(), "seccomp")


def seccomp_is_granted() -> bool:
    """Whether `Seccomp` can be installed here: a child tries."""
    if sys.platform != "linux" or os.uname().machine not in _MACHINES or struct.calcsize("P") != 8:
        return False
    pid = os.fork()
    if pid == 0:
        try:
            Seccomp(files=True).install()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def restrict_files() -> bool:
    """Leave this process and what it starts only Python's libraries, read-only; whether Landlock was there to do it.

    It also withholds TCP, signals to processes outside and abstract sockets, where the kernel's Landlock knows them.
    """
    if sys.platform != "linux":
        return False
    syscall = _libc().syscall
    version = syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    bits = _RIGHTS[min(version, max(_RIGHTS))]
    handled = struct.pack("=QQQ", *((1 << count) - 1 for count in bits))
    ruleset = syscall(_LANDLOCK_CREATE_RULESET, handled, 24 if bits[2] else 16 if bits[1] else 8, 0)
    if ruleset < 0:
        return False
    for path in filter(os.path.exists, _libraries()):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE
        syscall(_LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
        os.close(descriptor)
    _no_new_privileges()
    granted = syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return granted


def _libraries() -> list[str]:
    """Where Python and what is installed beside it lie; not the rest of `sys.path`, which is where users keep data."""
    sites = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    shared = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", os.path.join(sys.base_prefix, "lib")]
    return [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *sites, *shared]


def _filter(machine: str, files: bool) -> bytes:
    """The instructions: another architecture's calls kill; of the others, what is not allowed fails."""
    column, architecture = _MACHINES[machine]
    numbers = {name: number for name, pair in _CALLS.items() if (number := pair[column]) is not None}
    opening, limiting = numbers.pop("openat"), numbers.pop("prlimit64")
    refuse, allow = (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number in numbers.values():
        code += [(_EQUAL, 0, 1, number), allow]
    if files:  # unless a flag says that it may write
        code += [(_EQUAL, 0, 4, opening), (_LOAD, 0, 0, _ARGUMENTS + 8 * 2), (_ANY_BIT, 0, 1, _WRITING), refuse, allow]
    # To ask for limits, not to set them: the pointer to new ones is null in both halves.
    code += [(_EQUAL, 0, 5, limiting), (_LOAD, 0, 0, _ARGUMENTS + 8 * 2), (_EQUAL, 0, 3, 0)]
    code += [(_LOAD, 0, 0, _ARGUMENTS + 8 * 2 + 4), (_EQUAL, 0, 1, 0), allow, refuse]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _no_new_privileges() -> None:
    """What both layers ask of a process without privileges: that it cannot gain any by starting a program."""
    _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
