"""The schema of the database: numbered SQL files, applied in order, each once."""

import importlib.resources
import re

from sqlalchemy import Connection, text

from jaxalign.errors import InputError

_NAME = re.compile(r"(\d{4})_\w+\.sql")
_LOCK = 0x6A61786C  # any number that no other program of the database takes
_VERSIONS = "CREATE TABLE IF NOT EXISTS schema_versions (version BIGINT PRIMARY KEY)"


def migrate(connection: Connection, source: str) -> int:
    """Bring a database to the schema of this version of jaxalign.

    Args:
        connection: in a transaction, which the caller commits.
        source: of the database, for messages.

    Returns:
        The version of the schema.

    Raises:
        InputError: the database has a newer schema than this version of jaxalign knows.
    """
    files = migrations()
    newest = max(files)
    if connection.dialect.name == "postgresql":
        # Copies that start at once wait for each other; SQLite's transaction does so by itself.
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    connection.execute(text(_VERSIONS))
    found = connection.execute(text("SELECT MAX(version) FROM schema_versions")).scalar()
    known = 0 if found is None else int(found)
    if known > newest:
        raise InputError(
            f"{source}: found a database of schema {known}, expected {newest} or lower; it was "
            "written by a newer jaxalign: install that version, or give another --database."
        )
    for version in range(known + 1, newest + 1):
        for statement in statements(files[version]):
            connection.execute(text(statement))
        connection.execute(
            text("INSERT INTO schema_versions (version) VALUES (:version)"), {"version": version}
        )
    return newest


def migrations() -> dict[int, str]:
    """Return the SQL of every migration by its number."""
    folder = importlib.resources.files("jaxalign.serve.store.migrations")
    names = ((_NAME.fullmatch(entry.name), entry) for entry in folder.iterdir())
    return {int(match[1]): entry.read_text("utf-8") for match, entry in names if match}


def statements(sql: str) -> list[str]:
    """Return the statements of a file, without its comments.

    Example:
        >>> from jaxalign.serve.store.migrate import statements
        >>> statements("-- Two tables.\\nCREATE TABLE a (x TEXT);\\n\\nCREATE TABLE b (x TEXT);\\n")
        ['CREATE TABLE a (x TEXT)', 'CREATE TABLE b (x TEXT)']
    """
    lines = [line for line in sql.splitlines() if not line.lstrip().startswith("--")]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]
