"""Columns of a table by name; a dot leads into a column of structures, as in `meta.kind`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from mda.data.errors import DataError
from mda.schema import HfConfig
from mda.schema.setting import nearest


def names_in(schema: pa.Schema) -> list[str]:
    """Returns every name that `column` accepts."""
    return [name for field in schema for name in _names(field, "")]


def _names(field: pa.Field, before: str) -> Iterator[str]:
    yield (name := before + field.name)
    if pa.types.is_struct(field.type):
        for inner in field.type:
            yield from _names(inner, f"{name}.")


def root(name: str, columns: Sequence[str]) -> str:
    """Returns the column of the table that holds a name: the part before the first dot."""
    return name if name in columns else name.partition(".")[0]


def column(table: pa.Table, name: str) -> pa.Array:
    """Returns a column's values; nulls where the table has none of that name."""
    if name not in names_in(table.schema):
        return pa.nulls(len(table))
    at = root(name, table.column_names)
    values = table[at].combine_chunks()
    for inner in filter(None, name[len(at) + 1 :].split(".")):
        values = pc.struct_field(values, inner)  # type: ignore[attr-defined]
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def refuse_missing(config: HfConfig, columns: Sequence[str]) -> None:
    """Raises DataError for a setting that names none of the columns."""
    for setting in ("label", "ordered_by", "tokens" if config.tokens else "text"):
        name = getattr(config, setting)
        if name is not None and name not in columns:
            raise DataError(
                f"data.{setting}={name}: no such column{nearest(name, columns)}; "
                f"expected {', '.join(columns)}"
            )


def wanted(config: HfConfig) -> list[str]:
    """Returns the columns that are read."""
    names = (config.tokens or config.text, config.label, config.ordered_by)
    return list(dict.fromkeys(name for name in names if name is not None))
