"""Moves, grows and shrinks memory while it is merged; what it reads must be what it wrote."""
import ctypes
import random
import sys
import time

PAGE = 4096
MAYMOVE, FIXED, DONTUNMAP = 1, 2, 4
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def call(function, *args):
    result = getattr(libc, function)(*args)
    if result in (-1, 2**64 - 1):
        raise OSError(ctypes.get_errno(), f"{function}{args}")
    return result


def anonymous(pages):
    return call("mmap", None, pages * PAGE, 3, 0x22, -1, 0)


def counter(name):
    with open(f"/sys/kernel/mm/ksm/{name}") as file:
        return int(file.read())


def wait_scans(count):
    last = counter("full_scans") + count
    while counter("full_scans") < last:
        time.sleep(0.002)


class Memory:
    """Some pages, and what must be in them: a byte each."""

    def __init__(self, pages):
        self.addr, self.bytes = anonymous(pages), [0] * pages
        self.advise(12)

    def advise(self, advice):
        call("madvise", self.addr, len(self.bytes) * PAGE, advice)

    def write(self, page, byte):
        ctypes.memset(self.addr + page * PAGE, byte, PAGE)
        self.bytes[page] = byte

    def check(self, what):
        for page, byte in enumerate(self.bytes):
            found = ctypes.string_at(self.addr + page * PAGE, PAGE)
            assert found == bytes([byte]) * PAGE, f"{what}: page {page} of {len(self.bytes)}: {found[:4]} for {byte}"

    def resize(self, pages, flags, to=None):
        old = self.addr, len(self.bytes)
        self.addr = call("mremap", self.addr, old[1] * PAGE, pages * PAGE, flags, to)
        self.bytes = (self.bytes + [0] * pages)[:pages]
        if flags & DONTUNMAP:
            assert ctypes.string_at(old[0], old[1] * PAGE) == bytes(old[1] * PAGE), "what stays is empty"
            call("munmap", old[0], old[1] * PAGE)


def step(memory, dice):
    """One change, chosen by `dice`; its name."""
    pages = len(memory.bytes)
    what = dice.choice(["write", "grow", "grow in place", "shrink", "to an address", "leave empty", "discard"])
    if what == "write":
        for _ in range(8):
            memory.write(dice.randrange(pages), dice.randrange(1, 4))
    elif what == "grow":
        memory.resize(pages + dice.randrange(1, 8), MAYMOVE)
    elif what == "grow in place":
        try:
            memory.resize(pages + 1, 0)
        except OSError as error:
            assert error.errno == 12, error
    elif what == "shrink" and pages > 24:
        memory.resize(pages - 4, MAYMOVE)
    elif what == "to an address":
        memory.resize(pages, MAYMOVE | FIXED, anonymous(pages))
    elif what == "leave empty":
        memory.resize(pages, MAYMOVE | DONTUNMAP)
    elif what == "discard":
        memory.advise(4)
        memory.bytes = [0] * pages
    return what


def main():
    dice = random.Random(int(sys.argv[1]))
    memory, most = Memory(24), 0
    for _ in range(int(sys.argv[2])):
        for _ in range(8):
            memory.write(dice.randrange(len(memory.bytes)), dice.randrange(1, 4))
        wait_scans(dice.randrange(4))
        most = max(most, counter("pages_sharing"))
        for _ in range(dice.randrange(1, 4)):
            memory.check(step(memory, dice))
        memory.advise(12)
    print(most)


main()
