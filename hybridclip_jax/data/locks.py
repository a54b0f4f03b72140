"""A lock on a name beside the thing that is written: held by one process, gone with it however that ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from hybridclip_jax.errors import StorageError, UserError


@contextlib.contextmanager
def only_one(path: Path, busy: str) -> Iterator[None]:
    """Holds the lock file `path`. UserError, which says `busy`, where another process does; StorageError where it
    cannot be made."""
    try:
        descriptor = take_lock(path, wait=False)
    except BlockingIOError as error:
        raise UserError(busy) from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        release_lock(path, descriptor)


def take_lock(path: Path, *, wait: bool) -> int:
    """The descriptor of the lock file `path`, held by this process; for `release_lock`.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            # Some cluster file systems are mounted without locks; two runs at once then stay the user's to
            # avoid.
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                os.close(descriptor)
                raise
            return descriptor
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its last holder removed the name between our open and our lock


def release_lock(path: Path, descriptor: int) -> None:
    """Removes the lock file and lets go of it."""
    path.unlink(missing_ok=True)  # while still held, so that nobody holds a lock on a name that is gone
    os.close(descriptor)
