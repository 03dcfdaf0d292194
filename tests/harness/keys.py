"""Keys with rights of their own, written into the data folder as the server keeps them (hashes in `apps.json`)."""

import copy
import hashlib
import json


def add_key(server, key, capabilities, kind="client", disabled=False):
    """Add a record for `key` to the folder of a server that has been started once; it counts after a start or SIGHUP."""
    path = server.data_dir / "apps.json"
    apps = json.loads(path.read_text())
    record = copy.deepcopy(next(r for r in apps["keys"] if r["kind"] == kind))
    record.update(
        id=key, prefix=key[:6], hash=hashlib.sha256(key.encode()).hexdigest(), capabilities=capabilities, disabled=disabled
    )
    apps["keys"] = [r for r in apps["keys"] if r["id"] != key] + [record]
    path.write_text(json.dumps(apps))
