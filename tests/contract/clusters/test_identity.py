"""Who an agent is, and attacks of one cluster on another (docs/reference/protocol.md, section 6.5)."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from typing import Any

import jwt
import nats.errors
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from nvcf_proto.ids import new_id
from nvcf_proto.models import InstanceState
from tests.support.peers.icms_agent import AgentPeer
from tests.support.peers.service_account import ISSUER, ServiceAccount
from tests.support.platform.gateways import ACCOUNT
from tests.support.platform.icms import ComputePlane
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module")]


async def with_tokens(plane: ComputePlane, **fields: Any) -> tuple[AgentPeer, ServiceAccount]:
    """Register a cluster by its key set; return its agent and its signer."""
    signer = ServiceAccount()
    agent = await plane.cluster(connect=False, jwks=signer.jwks, **fields)
    assert agent.credential == "", "a cluster with a key set gets no key"
    agent.credential = signer.token(agent.cluster_id)
    return agent, signer


async def test_a_projected_token_is_an_identity_for_http_and_broker(plane: ComputePlane) -> None:
    """6.5: audience nvcf-icms:C, signed by a key of the cluster's own set."""
    agent, _ = await with_tokens(plane, oidcIssuer=ISSUER)
    assert (await agent.register())[0] == 200
    client = await agent.connect()
    assert client.is_connected


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["nvcf-icms:another"]},
        {"aud": ["https://kubernetes.default.svc"]},
        {"aud": None},
        {"iss": "https://elsewhere.example"},
        {"iss": None},
        {"exp": None},
        {"exp": 1_700_000_000},
        {"nbf": 4_000_000_000},
    ],
)
async def test_a_token_with_wrong_claims_is_401(plane: ComputePlane, changes: dict[str, Any]) -> None:
    """6.5: audience, issuer and expiry are checked."""
    agent, signer = await with_tokens(plane, oidcIssuer=ISSUER)
    agent.credential = signer.token(agent.cluster_id, **changes)
    assert (await agent.heartbeat())[0] == 401
    with pytest.raises((nats.errors.Error, OSError, TimeoutError)):
        async with asyncio.timeout(15):
            await agent.connect()


async def test_without_a_registered_issuer_any_is_accepted(plane: ComputePlane) -> None:
    """6.5: the issuer of the cluster's oidcIssuer, if that is set."""
    agent, signer = await with_tokens(plane)
    agent.credential = signer.token(agent.cluster_id, iss="https://any.example")
    assert (await agent.heartbeat())[0] == 200


async def test_the_key_set_is_per_cluster(plane: ComputePlane) -> None:
    """6.5: all clusters share issuer and subject, so another cluster's signature says nothing here."""
    one, signer = await with_tokens(plane)
    other, _ = await with_tokens(plane)
    other.credential = signer.token(other.cluster_id)
    assert (await other.heartbeat())[0] == 401
    one.credential = signer.token(one.cluster_id)
    assert (await one.heartbeat())[0] == 200


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
async def test_other_algorithms_are_refused(plane: ComputePlane, algorithm: str) -> None:
    """6.5: RS256 only; a key set is public, so it must never be taken for a shared secret."""
    agent, signer = await with_tokens(plane)
    claims = {"aud": f"nvcf-icms:{agent.cluster_id}", "exp": int(time.time()) + 600, "iss": ISSUER}
    # By hand: libraries refuse to make such a token.
    parts = ({"alg": algorithm, "kid": signer.key_id, "typ": "JWT"}, claims)
    signed = ".".join(_segment(json.dumps(each).encode()) for each in parts)
    digest = hmac.digest(signer.jwks.encode(), signed.encode(), "sha256")
    agent.credential = f"{signed}.{'' if algorithm == 'none' else _segment(digest)}"
    assert (await agent.heartbeat())[0] == 401


async def test_keys_are_rotated_with_put_jwks(plane: ComputePlane) -> None:
    """6.5: the key set is text; after the change the old signer is refused and the new one is good."""
    agent, old = await with_tokens(plane)
    new = ServiceAccount("key-2")
    path = f"/v1/nvca/clusters/{agent.cluster_id}/jwks"
    assert await agent.call("PUT", path, {"jwks": new.jwks}) == (200, {})
    agent.credential = new.token(agent.cluster_id)
    await eventually_status(agent, 200)
    agent.credential = old.token(agent.cluster_id)
    await eventually_status(agent, 401)


async def eventually_status(agent: AgentPeer, status: int) -> None:
    async def reached() -> bool:
        return (await agent.heartbeat())[0] == status

    await eventually(reached, f"status {status}")


async def test_a_cluster_with_a_key_may_add_a_key_set(plane: ComputePlane) -> None:
    """6.5: NVIDIA's agent puts its key set at each start."""
    agent, signer = await plane.cluster(connect=False), ServiceAccount()
    path = f"/v1/nvca/clusters/{agent.cluster_id}/jwks"
    assert (await agent.call("PUT", path, {"jwks": signer.jwks}))[0] == 200
    agent.credential = signer.token(agent.cluster_id)
    await eventually_status(agent, 200)


@pytest.mark.parametrize(
    "jwks", ["", "{", "[]", "{}", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "eA"}]}']
)
async def test_a_key_set_without_keys_is_400(plane: ComputePlane, jwks: str) -> None:
    """6.5: a broken key set does not lock the agent out."""
    agent, _ = await with_tokens(plane)
    path = f"/v1/nvca/clusters/{agent.cluster_id}/jwks"
    status, problem = await agent.call("PUT", path, {"jwks": jwks})
    assert (status, problem["field"]) == (400, "jwks")
    assert (await agent.heartbeat())[0] == 200


async def test_a_rotation_ends_what_a_stolen_key_has_made(plane: ComputePlane) -> None:
    """6.5: a key set put with the old key is dropped with its connections, and cannot be put again."""
    thief, signer = await plane.cluster(connect=False), ServiceAccount()
    key = thief.credential
    path = f"/v1/nvca/clusters/{thief.cluster_id}/jwks"
    assert (await thief.call("PUT", path, {"jwks": signer.jwks}))[0] == 200
    thief.credential = signer.token(thief.cluster_id)
    await eventually_status(thief, 200)
    await thief.connect()
    made = await plane.platform.call("POST", f"/v1/accounts/{ACCOUNT}/clusters/{thief.cluster_id}/rotate")
    await eventually_status(thief, 401)
    await eventually(lambda: thief.nats.is_closed, "its connection is ended")
    thief.credential = key
    assert (await thief.call("PUT", path, {"jwks": signer.jwks}))[0] == 403
    assert (await thief.heartbeat())[0] == 200, "the agent has some minutes to take the new key"
    owner = plane.agent(thief.cluster_id, made["clusterKey"])
    assert (await owner.call("PUT", path, {"jwks": signer.jwks}))[0] == 200


async def test_a_rotation_keeps_the_key_set_of_the_administrator(plane: ComputePlane) -> None:
    """6.5: NVIDIA's agent puts the same one at each start."""
    agent, signer = await with_tokens(plane)
    path = f"/v1/nvca/clusters/{agent.cluster_id}/jwks"
    assert (await agent.call("PUT", path, {"jwks": signer.jwks}))[0] == 200
    await plane.platform.call("POST", f"/v1/accounts/{ACCOUNT}/clusters/{agent.cluster_id}/rotate")
    assert (await agent.heartbeat())[0] == 200


@pytest.mark.parametrize("kind", ["private", "none", "short"])
async def test_a_key_set_of_keys_that_cannot_verify_is_400(plane: ComputePlane, kind: str) -> None:
    """6.5: a private key, or one for the algorithm `none`, would lock the agent out; a short one is weak."""
    agent, _ = await with_tokens(plane)
    key = jwt.algorithms.RSAAlgorithm.to_jwk(
        generate_private_key(65537, 1024 if kind == "short" else 2048), as_dict=True
    )
    if kind != "private":
        key = {name: key[name] for name in ("kty", "n", "e")} | ({"alg": "none"} if kind == "none" else {})
    path = f"/v1/nvca/clusters/{agent.cluster_id}/jwks"
    status, problem = await agent.call("PUT", path, {"jwks": json.dumps({"keys": [key]})})
    assert (status, problem["field"]) == (400, "jwks")
    assert (await agent.heartbeat())[0] == 200


ROUTES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("PUT", "/v1/nvca/clusters/{c}/register", {"gpus": []}),
    ("GET", "/v1/nvca/clusters/{c}/credentials", None),
    ("POST", "/v1/nvca/clusters/{c}/heartbeat", {"gpuUsage": {}}),
    ("PUT", "/v1/nvca/clusters/{c}/jwks", {"jwks": "{}"}),
    ("GET", "/v1/nvca/clusters/{c}/prefetch", None),
    ("GET", "/v1/si/clusters/{c}/instances", None),
    ("PUT", "/v1/sirs/{r}", {"instanceCount": 1}),
    ("POST", "/v1/sirs/{r}/{i}", {"status": "fulfilled", "instanceState": "running"}),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_each_route_wants_an_identity(
    plane: ComputePlane, method: str, path: str, body: dict[str, Any] | None
) -> None:
    """6.5: 401 without one, with a foreign one, with an administrator's key."""
    agent = await plane.cluster(connect=False)
    filled = path.format(c=agent.cluster_id, r=new_id(), i="0-sr-x")
    for credential in (None, "x", plane.platform.keys["admin"], plane.platform.keys["agent"]):
        headers = agent.headers()
        del headers["Authorization"]
        if credential is not None:
            headers["Authorization"] = f"Bearer {credential}"
        assert (await agent.call(method, filled, body, headers=headers))[0] == 401, credential


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_each_route_wants_the_identity_of_its_cluster(
    plane: ComputePlane, method: str, path: str, body: dict[str, Any] | None
) -> None:
    """6.5: path, header and identity must agree, else 403."""
    agent, victim = await plane.cluster(connect=False), await plane.cluster(connect=False)
    filled = path.format(c=victim.cluster_id, r=new_id(), i="0-sr-x")
    as_victim = agent.headers(**{"X-Nv-Cluster-Id": victim.cluster_id})
    assert (await agent.call(method, filled, body, headers=as_victim))[0] == 403
    if "{c}" in path:
        assert (await agent.call(method, filled, body))[0] == 403
    headers = agent.headers()
    del headers["X-Nv-Cluster-Id"]
    own = path.format(c=agent.cluster_id, r=new_id(), i="0-sr-x")
    assert (await agent.call(method, own, body, headers=headers))[0] == 403


async def test_a_request_of_another_cluster_is_out_of_reach(plane: ComputePlane) -> None:
    """6.5: it is known whose it is, so what runs of it elsewhere ends, and nothing changes."""
    owner, attacker = await plane.cluster(), await plane.cluster()
    version = await plane.version()
    request = await plane.running(owner, version)
    before = plane.record(request)
    instance = f"0-sr-{request}"
    for state in ("starting", "running", "shutting-down"):
        assert (await attacker.report(request, instance, state))[0] == 412
    assert await attacker.ended_by_user(request, instance) == await attacker.ended_by_user(new_id(), instance)
    assert await attacker.acknowledge(request) == await attacker.acknowledge(new_id())
    assert (await attacker.acknowledge(request))[0] == 404
    assert plane.record(request) == before
    assert (await attacker.call("GET", f"/v1/si/clusters/{attacker.cluster_id}/instances"))[1] == {
        "instances": []
    }


async def test_a_stranger_cannot_requeue_requests_of_others(plane: ComputePlane) -> None:
    """6.5: heldRequests of another version, or of no request at all, are left alone."""
    agent = await plane.cluster()
    version, other = await plane.version(), await plane.version(name="other-function")
    request = await plane.running(agent, version)
    held = [
        f"$JS.ACK.rq_local_{other.id}.rq_local_{other.id}_workers.1.1.1.1.0",
        "$JS.ACK.KV_nvcf_api_keys.x.1.1.1.1.0",
        "$JS.API.STREAM.PURGE.KV_nvcf_api_keys",
        "rubbish \r\n",
        "",
    ]
    acks: list[str] = []

    async def seen(message: Any) -> None:
        acks.append(message.subject)

    spy = await plane.data.subscribe(">", cb=seen)
    await plane.data.flush()
    status, _ = await agent.ended(request, f"0-sr-{request}", "failed", heldRequests=held)
    assert status == 200
    await plane.state(request, InstanceState.FAILED)
    await plane.data.flush()
    await spy.unsubscribe()
    assert [each for each in acks if each in held] == []


async def test_a_cluster_key_is_good_for_nothing_else(plane: ComputePlane) -> None:
    """6.5: not for the management API, not for invocations, not for administration."""
    agent = await plane.cluster(connect=False)
    version = await plane.version()
    headers = {"Authorization": f"Bearer {agent.credential}"}
    for method, path in (
        ("GET", "/v2/nvcf/functions"),
        ("GET", "/v2/nvcf/clusters"),
        ("GET", "/v2/nvcf/keys"),
        ("POST", version.pexec),
        ("GET", f"/v1/accounts/{ACCOUNT}/clusters"),
        ("POST", f"/v1/accounts/{ACCOUNT}/clusters/{agent.cluster_id}/rotate"),
    ):
        async with plane.platform.session.request(
            method, plane.platform.gateway.url + path, headers=headers, data=b"{}"
        ) as response:
            assert response.status == 403, (path, await response.text())


async def test_the_key_is_shown_once_and_only_its_hash_is_stored(plane: ComputePlane) -> None:
    """6.5: clusterKey is in the answer to the registration and nowhere else."""
    agent = await plane.cluster(connect=False)
    shown = json.dumps(await plane.platform.call("GET", f"/v1/accounts/{ACCOUNT}/clusters"))
    shown += json.dumps(await plane.platform.call("GET", "/v2/nvcf/keys"))
    assert agent.credential not in shown
    assert "secretHash" not in shown


async def test_a_projected_token_can_be_introspected(plane: ComputePlane) -> None:
    """6.5: RFC 7662, without a credential; what is not good is no error."""
    agent, signer = await with_tokens(plane, oidcIssuer=ISSUER)
    other, _ = await with_tokens(plane)

    async def asked(token: object) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"}
        return await agent.call("POST", "/v1/nvca/tokens/introspect", {"token": token}, headers=headers)

    status, answer = await asked(signer.token(agent.cluster_id))
    assert (status, answer["active"]) == (200, True)
    assert (answer["clusterId"], answer["client_id"]) == (agent.cluster_id, agent.cluster_id)
    assert (answer["aud"], answer["iss"]) == (f"nvcf-icms:{agent.cluster_id}", ISSUER)
    assert answer["sub"] == "system:serviceaccount:nvca-system:nvca"
    for bad in (
        "x",
        signer.token(other.cluster_id),
        signer.token(agent.cluster_id, life=-100.0),
        signer.token(agent.cluster_id, aud="else"),
        signer.token(new_id()),
        ServiceAccount().token(agent.cluster_id),
        signer.token(agent.cluster_id, iss="https://else"),
    ):
        status, answer = await asked(bad)
        assert (status, answer["active"]) == (200, False)
        assert answer["error"]
        assert "clusterId" not in answer
    assert (await asked(""))[0] == 400
    assert (await asked(1))[0] == 400
    assert (await asked("x" * 20_000))[0] == 431
    await plane.platform.call("DELETE", f"/v1/accounts/{ACCOUNT}/clusters/{agent.cluster_id}")
    assert (await asked(signer.token(agent.cluster_id)))[1]["active"] is False
