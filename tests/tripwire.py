"""Fake heavy packages that note who asks for them: one that is not installed would otherwise never be missed."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGES = ("tensorflow", "tensorflow_datasets", "tensorflow_io", "tensorboard", "torch", "transformers")
# Noted in a file, because whoever asks may well catch the error.
FAKE = """
import traceback

asked = [frame for frame in traceback.extract_stack()[:-1] if "importlib" not in frame.filename][-1]
with open({noted!r}, "a") as file:
    file.write(f"{{__name__}} by {{asked.filename}}\\n")
raise ImportError("a tripwire of the tests")
"""


class Tripwire:
    """`environment` gives a Python process the fakes ahead of what is installed; `tripped` says what it asked for."""

    def __init__(self, folder: Path) -> None:
        self._noted = folder / "noted.txt"
        for name in PACKAGES:
            (folder / name).mkdir(parents=True)
            (folder / name / "__init__.py").write_text(FAKE.format(noted=str(self._noted)))
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        self.environment = {**os.environ, "PYTHONPATH": path}

    def tripped(self) -> list[str]:
        """`<package> by <file that asked>`, in the order they were asked for."""
        return self._noted.read_text().splitlines() if self._noted.exists() else []
