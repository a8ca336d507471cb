"""Runs a command with PR_SET_MEMORY_MERGE, as systemd does for a unit with MemoryKSM=yes."""
import ctypes
import os
import sys

PR_SET_MEMORY_MERGE = 67
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) != 0:
    sys.exit(f"PR_SET_MEMORY_MERGE: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[1], sys.argv[1:])
