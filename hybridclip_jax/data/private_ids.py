"""Keyed hashes for record, study and patient ids: equal within a user's stores, meaningless without the
user's key.

Most datasets build the image and study ids from the patient's, so all three are hashed. The key is the
environment variable HYBRIDCLIP_PATIENT_KEY, or else a file made once under the user's config folder, readable
by its owner only.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from pathlib import Path

from hybridclip_jax.errors import StorageError, UserError

KEY_VARIABLE = "HYBRIDCLIP_PATIENT_KEY"
SHORTEST_KEY = 16  # characters
# Phantoms have no patients to protect: a published key makes their stores the same for everyone.
PUBLIC_KEY = b"hybridclip_jax: published key for synthetic data"
ID_LENGTH = 32  # hex digits: 128 bits, so that two of a billion ids meet with a chance below 1e-20


class IdHasher:
    """Maps raw ids of one namespace to 32 hex digits: HMAC-SHA256 of (namespace, kind, raw) under `key`."""

    def __init__(self, key: bytes, namespace: str) -> None:
        self._key = key
        self.namespace = namespace
        self.fingerprint = hmac.new(key, b"fingerprint", hashlib.sha256).hexdigest()[:16]

    def __call__(self, kind: str, raw: str) -> str:
        message = "\0".join((self.namespace, kind, raw)).encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:ID_LENGTH]


def key_file() -> Path:
    """Where the user's key lives when the environment gives none."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "hybridclip" / "patient_key"


def user_key() -> bytes:
    """The user's key, made on first use.

    Raises:
        UserError: the variable has less than SHORTEST_KEY characters, or the key file is empty or readable by others.
        StorageError: the key file cannot be read or made.
    """
    if KEY_VARIABLE in os.environ:
        key = os.environ[KEY_VARIABLE].strip()
        if len(key) < SHORTEST_KEY:  # its fingerprint is published with every store: a short one can be found from it
            raise UserError(
                f"{KEY_VARIABLE} has {len(key)} characters: give it at least {SHORTEST_KEY} random ones, or unset it "
                f"to use {key_file()}"
            )
        return key.encode()
    path = key_file()
    try:
        if not path.exists():
            _make_key_file(path)
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise UserError(f"{path} can be read by others (mode {mode:o}): run chmod 600 on it")
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII text"
        raise StorageError(
            f"{path}: cannot keep the patient key here ({reason}): set {KEY_VARIABLE} instead"
        ) from error
    if not key:
        raise UserError(f"{path} is empty: put the key of your other stores back, or delete the file for a new key")
    return key.encode()


def _make_key_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        # A link, not a rename: of two first runs at once, both must end with the first one's key.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(draft)
