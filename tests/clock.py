"""
A wall clock that can be set, for one process: a library that is loaded before the C library and moves its answers.

    clock = Clock(tmp_path)
    with LocalRedis(env=clock.env):
        clock.set_back(3600)

Monotonic clocks go on as they were, as on a host whose clock is set. It is made with the C compiler that is there.
"""

import mmap
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *ahead;

__attribute__((constructor)) static void map_the_file(void) {
    const char *path = getenv("CLOCK_FILE");
    int file = path ? open(path, O_RDONLY) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) ahead = page;
}

int clock_gettime(clockid_t which, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, which, at);
    if (!failed && ahead && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) at->tv_sec += *ahead;
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """How far a process's clock is ahead of this one's."""

    def __init__(self, directory: Path) -> None:
        """Make the library; skip where that cannot be done, and in CI fail, or nobody would notice."""
        compiler = shutil.which("cc")
        if compiler is None or not sys.platform.startswith("linux"):
            message = "setting the clock of a process takes Linux and a C compiler"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        source, library, file = (directory / name for name in ("clock.c", "clock.so", "clock"))
        source.write_text(SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 8)
        self.env = {"LD_PRELOAD": str(library), "CLOCK_FILE": str(file)}

    def set_back(self, seconds: int) -> None:
        """Set the clock of all processes that were started with ``env`` back, at once."""
        [ahead] = struct.unpack("q", self._map)
        self._map[:] = struct.pack("q", ahead - seconds)
