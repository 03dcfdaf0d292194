"""Certificates made for one test, and client contexts that trust them.

Not a server and not a client: `RawSocket(…, tls=context, server_name=…)` and `Client` take what is made here.
"""

import os
import pathlib
import ssl

import trustme


class Authority:
    """A certificate authority with a folder of PEM files."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ca = trustme.CA()
        self.file = self.folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.file)

    def issue(self, name, *identities, **options):
        """Writes `name.pem` and `name.key`, each by one rename; returns the two paths."""
        made = self.ca.issue_cert(*(identities or ("localhost", "127.0.0.1")), **options)
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        replace(key, made.private_key_pem.bytes())
        replace(cert, chain)
        return cert, key

    def context(self, version=None, alpn=("http/1.1",), identity=None):
        """A client that trusts this authority; `version` limits it to one of TLS."""
        context = ssl.create_default_context(cafile=str(self.file))
        if version:
            context.minimum_version = context.maximum_version = version
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if identity:
            context.load_cert_chain(*map(str, identity))
        return context


def replace(path, data):
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def names_of(sock):
    """DNS names in the certificate that the server has shown."""
    return {value for kind, value in sock.getpeercert()["subjectAltName"] if kind == "DNS"}


def tls_config(*pairs, more=""):
    """The section of `shardwire.toml` for these certificates."""
    entries = ", ".join(f'{{ cert = "{cert}", key = "{key}" }}' for cert, key in pairs)
    return f"[tls]\ncertificates = [{entries}]\n{more}"
