"""Values out of Arrow columns, of which no extension type is ever brought to life.

Arrow keeps the name and parameters of an extension type beside the column, and a process that knows the name calls
the type's own code on the parameters as soon as a schema is read: some types unpickle them. So the name is made unknown
in the bytes, before they become a schema.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from lspm_ray.corpus.sources import SourceFile
from lspm_ray.errors import DataError

_EXTENSION = b"ARROW:extension:name"
_DISARMED = b"ARROW:extension:none"


def disarmed(schema: bytes) -> bytes:
    """A serialised schema in which extension types are plain ones that `check_type` still knows for what they were."""
    return schema.replace(_EXTENSION, _DISARMED)


def check_type(field: pa.Field, file: SourceFile) -> None:
    """Refuse a column of which the values are not plain.

    Raises:
        DataError: names the column, its type and the valid ones.
    """
    extension = isinstance(field.type, pa.BaseExtensionType) or {_EXTENSION, _DISARMED} & set(field.metadata or {})
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    t = pa.types
    plain = (t.is_string, t.is_large_string, t.is_binary, t.is_large_binary, t.is_boolean, t.is_integer, t.is_floating)
    if extension or not (t.is_null(kind) or any(is_kind(kind) for is_kind in plain)):
        raise DataError(
            f"column {field.name!r} of {file.name} has a type that is not read",
            field=file.section,
            value=str(field.type),
            valid=["string", "binary (UTF-8)", "integer", "floating point", "boolean"],
        )


def values(column: pa.Array) -> list[Any]:
    """The values of a column of a type that `check_type` passes. Texts come as bytes, which may not be UTF-8.

    Raises:
        pa.ArrowException: the column is damaged.
    """
    return list(_plain(column).to_pylist())


def _plain(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        return pa.DictionaryArray.from_arrays(column.indices, _plain(column.dictionary)).dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        # As bytes, because one string that is not UTF-8 must not cost the others.
        column = column.view(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
    column.validate(full=True)
    return column
