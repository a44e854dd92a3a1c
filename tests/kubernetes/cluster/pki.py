"""Keys and certificates of a test cluster, made anew for each, and the kubeconfig files with them."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 30
ADMIN_GROUP = "system:masters"

_SERVER, _CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class Authority:
    """A certificate authority that writes `NAME.crt` and `NAME.key` files into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.certificate = folder / f"{name}.crt"
        self._key = _new_key(folder / f"{name}.key")
        self._name = _name(name)
        usage = x509.BasicConstraints(ca=True, path_length=None)
        builder = self._builder(self._name, self._key.public_key()).add_extension(usage, critical=True)
        _write(self.certificate, builder.sign(self._key, hashes.SHA256()))

    def server(self, name: str, common_name: str, hosts: Sequence[str], group: str | None = None) -> None:
        """Issue a server certificate for host names and addresses."""
        self._issue(name, common_name, group, _SERVER, hosts)

    def client(self, name: str, common_name: str, group: str | None = None) -> None:
        """Issue a client certificate for a user in at most one group."""
        self._issue(name, common_name, group, _CLIENT, ())

    def _issue(
        self, name: str, user: str, group: str | None, usage: x509.ObjectIdentifier, hosts: Sequence[str]
    ) -> None:
        key = _new_key(self.folder / f"{name}.key")
        builder = self._builder(_name(user, group), key.public_key())
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if hosts:
            names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        _write(self.folder / f"{name}.crt", builder.sign(self._key, hashes.SHA256()))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=DAYS))
        )


def make(folder: Path, addresses: Sequence[str], node: str) -> None:
    """Write everything that a cluster needs: authorities, certificates of all parts, the key of the tokens.

    `addresses` are those of the API server beside the loopback's, `node` is the name of the real node.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority = Authority(folder, "ca")
    kubernetes = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    hosts = ["localhost", "127.0.0.1", *addresses]
    authority.server("apiserver", "kube-apiserver", [*hosts, *kubernetes, f"{kubernetes[-1]}.cluster.local"])
    authority.server("kubelet-server", f"system:node:{node}", [node, *hosts], "system:nodes")
    authority.client("kubelet", f"system:node:{node}", "system:nodes")
    authority.client("apiserver-to-kubelet", "kube-apiserver-kubelet-client", ADMIN_GROUP)
    authority.client("admin", "admin", ADMIN_GROUP)
    for part in ("controller-manager", "scheduler"):
        authority.client(part, f"system:kube-{part}")
    authority.client("proxy", "system:kube-proxy")
    Authority(folder, "front").client("front-client", "front-proxy-client")
    public = _new_key(folder / "tokens.key").public_key()
    (folder / "tokens.pub").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def write_kubeconfig(folder: Path, user: str, server: str, target: Path) -> None:
    """Write a kubeconfig file for one of the users that `make` gave a certificate."""
    text = {name: base64.b64encode((folder / name).read_bytes()).decode() for name in _files(user)}
    authority, certificate, key = text.values()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "test", "cluster": {"server": server, "certificate-authority-data": authority}}
        ],
        "users": [
            {"name": user, "user": {"client-certificate-data": certificate, "client-key-data": key}},
        ],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        "current-context": "test",
    }
    target.touch(mode=0o600)
    target.write_text(json.dumps(config, indent=1))


def _files(user: str) -> tuple[str, str, str]:
    return "ca.crt", f"{user}.crt", f"{user}.key"


def _name(common_name: str, group: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if group is not None:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
