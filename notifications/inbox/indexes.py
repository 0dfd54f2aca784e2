"""Indexes of a part of the rows, on databases that have such indexes and on those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.ddl_references import Statement


class PartialIndex(models.Index):
    """
    An index of the rows that meet a condition; where the database has only indexes of all rows, another one instead.

    An ``Index`` with a ``condition`` would not be created at all on MySQL and MariaDB, with a warning at each migrate.
    """

    def __init__(self, *, only: models.Q, instead: Sequence[str], fields: Sequence[str], name: str) -> None:
        """
        Describe an index.

        Args:
            only: The condition.
            instead: The fields of the index of all rows.
            fields: As for ``Index``.
            name: As for ``Index``.

        """
        super().__init__(fields=fields, name=name)
        self.only = only
        self.instead = instead

    def deconstruct(self) -> tuple[str, Sequence[Any], dict[str, Any]]:
        path, arguments, options = super().deconstruct()
        return path, arguments, {**options, "only": self.only, "instead": self.instead}

    def create_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, using: str = "", **kwargs: Any
    ) -> Statement:
        if schema_editor.connection.features.supports_partial_indexes:
            index = models.Index(fields=self.fields, name=self.name, condition=self.only)
        else:
            index = models.Index(fields=self.instead, name=self.name)
        return index.create_sql(model, schema_editor, using, **kwargs)
