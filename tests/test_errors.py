"""What a command's end looks like to the shell that called it."""

from __future__ import annotations

import errno

import pytest

from hybridclip_jax.errors import RunStopped, StorageError, UserError, run_or_exit


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a\nb: mend it"), 2, "error: a b: mend it"),
        (RunStopped("stuck"), 3, "error: stuck"),
        (StorageError("full"), 4, "error: full"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x/report.html"),
            4,
            "runs/x/report.html: No space left",
        ),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 4, "error: Broken pipe"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_a_fault_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def function() -> None:
        raise error

    assert run_or_exit(function) == code
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_or_exit(lambda: 1 // 0)
