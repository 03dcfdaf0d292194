"""Keys with rights of their own, written into the data folder as the server keeps them (hashes in `registry.db`)."""

import contextlib
import hashlib
import json
import sqlite3


def add_key(server, key, capabilities, kind="client", disabled=False):
    """Add a record for `key` to the folder of a server that has been started once; it counts after a start or SIGHUP."""
    record = {
        "id": key, "app": "dev", "kind": kind, "prefix": key[:6], "hash": hashlib.sha256(key.encode()).hexdigest(),
        "capabilities": capabilities, "disabled": disabled,
    }
    with contextlib.closing(sqlite3.connect(server.data_dir / "registry.db")) as db, db:
        db.execute("INSERT OR REPLACE INTO documents VALUES ('key', ?, ?)", (f"dev/{key}", json.dumps(record)))
