"""TLS of all listeners: what is spoken, who is trusted, and a certificate exchanged without a restart."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nvcf_gateway.config import GatewayConfig, parse_arguments
from nvcf_gateway.errors import SetupError
from nvcf_gateway.http.tls import server_context
from nvcf_proto.pb import ratelimiter_pb2, ratelimiter_pb2_grpc
from tests.support.http.authority import Authority
from tests.support.platform.gateways import Gateway, Platform, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = Path(__file__).parents[2] / "functions" / "echo.py"


@dataclass
class Secured:
    """A platform whose second gateway serves over TLS."""

    platform: Platform
    gateway: Gateway
    authority: Authority
    chain: Path
    key: Path

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.gateway.url.rpartition("/")[2].rpartition(":")
        return host, int(port)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority.file))

    async def serial(self, address: tuple[str, int] | None = None) -> int:
        """Serial number of the certificate that a new connection meets."""
        host, port = address or self.address
        context = self.context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        _, writer = await asyncio.open_connection(host, port, ssl=context)
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return x509.load_der_x509_certificate(certificate).serial_number


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def secured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secured]:
    """Broker, a gateway in the clear and one over TLS."""
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory)
    chain, key = directory / "gateway.crt", directory / "gateway.key"
    authority.issue(chain, key, rsa.generate_private_key(65537, 2048))
    async with running_platform(directory) as platform:
        gateway = await platform.start_gateway(
            "--tls-cert", str(chain), "--tls-key", str(key), "--inline-reply-bytes", "0"
        )
        gateway.url = gateway.url.replace("http://", "https://")
        yield Secured(platform, gateway, authority, chain, key)


async def test_http_is_served_over_tls_only_to_those_who_speak_it(secured: Secured) -> None:
    url = secured.gateway.url + "/health"
    async with aiohttp.ClientSession() as session:
        async with session.get(url, ssl=secured.context()) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(url)
        with pytest.raises(aiohttp.ClientError):
            await session.get(url.replace("https", "http"))
        async with session.get(url, ssl=secured.context()) as response:
            assert response.status == 200


async def test_nothing_older_than_tls_1_2(secured: Secured) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = secured.context()
        context.minimum_version = context.maximum_version = version
        _, writer = await asyncio.open_connection(*secured.address, ssl=context)
        writer.close()
    for address in (secured.address, _grpc_address(secured)):
        old = secured.context()
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(*address, ssl=old)


async def test_grpc_is_served_over_tls(secured: Secured) -> None:
    credentials = grpc.ssl_channel_credentials(secured.authority.file.read_bytes())
    version = await secured.platform.deployed_version()
    metadata = (("authorization", secured.platform.authorization()["Authorization"]),)
    async with grpc.aio.secure_channel(secured.gateway.grpc, credentials) as channel:
        stub: ratelimiter_pb2_grpc.RateLimitServiceAsyncStub
        stub = ratelimiter_pb2_grpc.RateLimitServiceStub(channel)
        request = ratelimiter_pb2.RateLimitRequest(
            ncaId="a", functionId=version.function_id, functionVersionId=version.id
        )
        answer = await stub.RateLimit(request, metadata=metadata, timeout=20)
        assert answer.result == ratelimiter_pb2.RateLimitResponse.ALLOW


@pytest.mark.parametrize("variable", ["NVCF_ROOT_CA_FILE", "SSL_CERT_FILE"])
async def test_a_worker_trusts_a_private_authority_named_in_its_environment(
    secured: Secured, variable: str
) -> None:
    """The attach URL is https, and the answer goes there: this gateway takes none over the broker."""
    platform = secured.platform
    version = await platform.deployed_version()
    tls = Gateway(secured.gateway.child, secured.gateway.url, "https://" + secured.gateway.grpc, "")
    await platform.start_worker(
        version,
        ECHO,
        "echo",
        gateway=tls,
        environment={variable: str(secured.authority.file)},
    )
    body = b"x" * 100_000
    async with platform.session.post(
        secured.gateway.url + version.pexec,
        data=body,
        headers=platform.authorization(),
        ssl=secured.context(),
    ) as response:
        assert response.status == 200, await response.text()
        assert body in await response.read()


async def test_a_new_certificate_is_used_without_a_restart(secured: Secured) -> None:
    """Of another kind of key, too; a connection that is open stays; a broken file changes nothing."""
    url = secured.gateway.url + "/health"
    addresses = (secured.address, _grpc_address(secured))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=secured.context())) as session:
        await (await session.get(url)).read()
        for key in (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)):
            serial = secured.authority.issue(secured.chain, secured.key, key)
            async with asyncio.timeout(15):
                for address in addresses:
                    while await secured.serial(address) != serial:
                        await asyncio.sleep(0.1)
            await (await session.get(url)).read()
    good = secured.chain.read_bytes()
    secured.chain.write_bytes(b"broken")
    for _ in range(15):
        for address in addresses:
            assert await secured.serial(address) == serial
        await asyncio.sleep(0.1)
    secured.chain.write_bytes(good)


def _grpc_address(secured: Secured) -> tuple[str, int]:
    host, _, port = secured.gateway.grpc.rpartition(":")
    return host, int(port)


# --- settings


async def test_unusable_files_are_reported_in_one_line(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    chain, key = tmp_path / "a.crt", tmp_path / "a.key"
    authority.issue(chain, key, ec.generate_private_key(ec.SECP256R1()))
    other = tmp_path / "b.key"
    authority.issue(tmp_path / "b.crt", other, ec.generate_private_key(ec.SECP256R1()))

    def config(certificate: Path, private: Path) -> GatewayConfig:
        return parse_arguments(
            ["--signing-key", "k", "--tls-cert", str(certificate), "--tls-key", str(private)]
        )

    assert server_context(config(chain, key)) is not None
    assert server_context(parse_arguments(["--signing-key", "k"])) is None
    for certificate, private in ((chain, other), (tmp_path / "missing", key), (key, key), (chain, chain)):
        with pytest.raises(SetupError) as caught:
            server_context(config(certificate, private))
        assert "\n" not in str(caught.value)
    with pytest.raises(SetupError, match="belong together"):
        parse_arguments(["--signing-key", "k", "--tls-cert", str(chain)])


async def test_a_gateway_with_a_certificate_that_cannot_be_used_does_not_start(secured: Secured) -> None:
    with pytest.raises(AssertionError, match="cannot use the certificate"):
        await secured.platform.start_gateway(
            "--tls-cert", str(secured.key), "--tls-key", str(secured.chain), "--region", "local"
        )
