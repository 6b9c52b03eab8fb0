"""Every error that a user can cause, and text for an error's line.

The command line prints the message and ends with the class's exit code. A programmer's mistake is an assert, never one
of these.
"""

from __future__ import annotations

from pathlib import Path


def printable(text: str | Path) -> str:
    r"""Text of others for a line, a chart or a page: control and invisible characters escaped, stray bytes as \xNN."""
    text = str(text)
    return text if text.isprintable() else "".join(map(_printable_letter, text))


def _printable_letter(letter: str) -> str:
    if letter.isprintable():
        return letter
    if "\udc80" <= letter <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return ascii(letter)[1:-1]


def one_line(error: object) -> str:
    """The text of an error in one line; the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class MdprError(Exception):
    """A mistake that the user can correct. The message is one line: the fault, then the fix."""

    exit_code = 2


class ConfigError(MdprError):
    """A key or a value in params.yaml (or in an override) is not allowed."""


class ArtifactError(MdprError):
    """A file handed from one stage to the next is missing, damaged, or does not belong to its neighbours."""


class DataError(MdprError):
    """An image, a label or a class of the source cannot be used."""


class KnowledgeError(MdprError):
    """The knowledge base is incomplete, or of other classes."""


class BackboneError(MdprError):
    """The CLIP model cannot be built, its weights are missing, or it does not support a setting."""


class TrainingError(MdprError):
    """Training cannot go on."""


class Diverged(TrainingError):
    """A term of the loss is no longer a number: from here the same settings end the same way every time."""


class Interrupted(MdprError):
    """SIGTERM came (a preempted node): the work so far is saved, and the same command goes on from there."""

    exit_code = 143


class TrackingError(MdprError):
    """The MLflow store or registry refused, or lacks a run, a version or an alias."""


class CheckFailed(MdprError):
    """A stage's check found faults. Its outputs are kept under ``<output>.failed`` for the user to look at."""


class AnswersMissing(CheckFailed):
    """A language model did not answer everything. Its answers are stored: the same command requests only the rest."""

    exit_code = 3
