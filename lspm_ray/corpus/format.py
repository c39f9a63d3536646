"""The contract of a file format: rows or documents out of one part of a file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from lspm_ray.plugin import Plugin

if TYPE_CHECKING:
    from lspm_ray.corpus.config import SourceConfig
    from lspm_ray.corpus.rows import Rejected, Row
    from lspm_ray.corpus.sources import SourceFile, Unit


class Format(Plugin):
    """How files of one format are read. What cannot be read is yielded as `Rejected`, never passed over.

    Class attributes:
        suffixes: file names that end in one of these have the format; without the dot and in lower case.
        tabular: files have named columns.
        labelled: labelled data are read from it too, not only documents.
        cut: a part of an uncompressed file can be read without the rest (`anywhere`); only by going through the whole
            file, so that there had better be few (`scanned`); or the file is one piece (`whole`).
    """

    package: ClassVar[str] = "lspm_ray.corpus.formats"
    kind: ClassVar[str] = "format"
    suffixes: ClassVar[tuple[str, ...]]
    tabular: ClassVar[bool] = False
    labelled: ClassVar[bool] = False
    cut: ClassVar[Literal["anywhere", "scanned", "whole"]]

    def prepare(self) -> None:
        """Load what reading needs beyond the core dependencies, and fail now if that cannot be had.

        Raises:
            ConfigError: says what to install.
        """

    def columns(self, file: SourceFile, config: SourceConfig) -> list[str]:
        """The names of the columns, from the beginning of a file; none if the format is not tabular.

        Raises:
            DataError: the file cannot be opened, or is not of the format.
        """
        return []

    @abstractmethod
    def read(self, unit: Unit, config: SourceConfig) -> Iterator[Row | Rejected]:
        """What lies in one unit, in file order. All units of a file together hold everything once.

        Raises:
            DataError: the file cannot be opened, lacks a column or has one that is not read.
        """


def formats(*, labelled: bool) -> list[type[Format]]:
    """The formats that labelled data, or documents, can have."""
    found = [Format.find(name) for name in reversed(Format.names())]
    return [kind for kind in found if kind.labelled or not labelled]
