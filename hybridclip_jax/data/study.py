"""What a reader of one on-disk dataset hands to `prepare`, which alone hashes, resizes and counts."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable

import PIL.Image


class RecordError(Exception):
    """Raised by `Study.load_image`: this record cannot be used. `reason` is counted and printed.

    The reason names a kind of fault ("missing image file"), never a file, a patient or a text. `unreadable`
    False: there was nothing to read, which the cap on unreadable images does not count.
    """

    def __init__(self, reason: str, unreadable: bool = True) -> None:
        super().__init__(reason, unreadable)  # both, so that it survives the way back from a worker process
        self.reason = reason
        self.unreadable = unreadable


@dataclasses.dataclass(frozen=True)
class Skip:
    """A row that the reader itself found unusable; counted and listed like any other skip.

    `unreadable`, unlike that of RecordError, has to be said: the row has an image, and it is damaged.
    """

    source_row: int
    reason: str
    unreadable: bool = False


@dataclasses.dataclass(frozen=True)
class Study:
    """One image with its text, as its owners name it.

    `load_image` decodes the whole image when called and raises `RecordError` (or OSError, ValueError) when it
    cannot. It is sent to worker processes, so it must pickle: a `functools.partial` of a module's function,
    not a lambda.
    """

    source_row: int  # 1-based data row of the source, the only locator allowed in logs; images of one row share it
    id: str  # raw, as are study and patient: hashed with the user's key before anything is written
    study: str
    patient: str
    split: str  # "" when the source names none
    view: str
    text: str
    sections: dict[str, str]  # parts of the report by name ("findings", "impression"); may be empty
    labels: dict[str, float | None]  # 1.0, 0.0, -1.0 (uncertain, as in CheXpert), None = blank
    load_image: Callable[[], PIL.Image.Image]
    licence: str = ""  # of this record, where the source tells it for each
    patient_known: bool = True  # False: the source names none, and `patient` stands for the study or the image


@dataclasses.dataclass(frozen=True)
class Source:
    """What a reader returns for one dataset."""

    studies: Iterable[Study | Skip]  # in a fixed order; read once
    total: int | None  # rows, where known, for the progress bar
    labels: tuple[str, ...]  # names in the order they are stored
    namespace: str  # patients of two stores compare only within one namespace ("csv:NAME", "phantom")
    public_ids: bool  # True: ids hashed with a published constant key, so that everyone's store is the same
    synthetic: bool  # True: every artefact made from it says so
    notes: dict[str, str]  # how the source was read; printed, and kept in the manifest under "source"
    colour: bool = False  # the pictures are coloured (histology, figures): three channels unless the user says grey
    text_optional: bool = False  # an evaluation set without reports: its rows are kept with the text ""


@dataclasses.dataclass(frozen=True)
class Format:
    """A reader: its name, the function that adds its flags (none required) and the function that reads.

    `read` gets the flags of every format in one namespace; `text` there is never None.
    """

    name: str
    add_arguments: Callable[[argparse._ActionsContainer], None]
    read: Callable[[argparse.Namespace], Source]  # raises UserError for what the user can mend
    describe: str  # one line: what its owners ship and where from
    example: str  # the flags of a real call after `hybridclip prepare --format NAME`, without --out
    paths: frozenset[str] = frozenset()  # which of "source", "images", "reports", "labels" it takes; others are refused
    text: str = "report"  # which part of the report is paired with the image unless the user says
