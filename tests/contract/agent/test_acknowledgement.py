"""The acknowledgement over HTTP, and the one at the broker that waits for it."""

from __future__ import annotations

import asyncio
import json
import time

from nats.aio.msg import Msg

from tests.support.peers.icms import CREATION, Call
from tests.support.platform.agent_site import CLUSTER, KEY, Ordered, Site
from tests.support.waiting import eventually

# An empty answer is an acknowledgement, too.
ACKS = {b"", b"+ACK"}


def always(status: int, kind: str = "acknowledge") -> object:
    """Return a judge that gives all calls of a kind this status."""
    return lambda call: status if call.kind == kind else None


async def answers(site: Site) -> list[bytes]:
    """Return a list that fills with the agent's answers to creation messages."""
    found: list[bytes] = []

    async def note(message: Msg) -> None:
        found.append(message.data)

    await site.icms.client.subscribe(f"$JS.ACK.{CREATION}.>", cb=note)
    await site.icms.client.subscribe(f"$JS.ACK.*.*.{CREATION}.>", cb=note)
    await site.icms.client.flush()
    return found


def asked(site: Site, ordered: Ordered) -> list[Call]:
    return [call for call in site.icms.of_kind("acknowledge") if ordered.request_id in call.path]


async def tries(site: Site, ordered: Ordered, count: int) -> None:
    """Wait for so many acknowledgements of a request."""
    await eventually(lambda: len(asked(site, ordered)) >= count)


async def test_no_code_but_200_is_success_and_none_of_these_drops_the_request(site: Site) -> None:
    """protocol.md, section 6.9: NVIDIA's agent drops the request; this one tries again."""
    await site.start_agent()
    orders = {status: site.order(site.version()) for status in (201, 202, 204, 500, 503, 403, 429)}

    def judge(call: Call) -> int | None:
        found = [status for status, ordered in orders.items() if ordered.request_id in call.path]
        return found[0] if call.kind == "acknowledge" else None

    site.icms.judge = judge
    for ordered in orders.values():
        await site.send(ordered)
    for ordered in orders.values():
        await tries(site, ordered, 2)
    assert await site.icms.waiting(CREATION) == len(orders)
    assert site.living() == 0
    assert site.icms.reports == {}
    site.icms.judge = lambda _: None
    await site.running(*orders.values())
    await site.settled(CREATION)


async def test_the_message_is_acknowledged_only_after_the_answer_200(site: Site) -> None:
    """protocol.md, section 6.2."""
    seen = await answers(site)
    await site.start_agent()
    site.icms.judge = always(503)  # type: ignore[assignment]
    ordered = await site.create(site.version())
    await eventually(lambda: asked(site, ordered))
    assert not ACKS & set(seen)
    site.icms.judge = lambda _: None
    await eventually(lambda: ACKS & set(seen))
    assert asked(site, ordered)[-1].status == 200


async def test_while_it_waits_the_message_is_in_progress(site: Site) -> None:
    """protocol.md, section 6.2: the broker does not give it out again."""
    site.time_scale = 0.005
    seen = await answers(site)
    await site.start_agent()
    site.icms.judge = always(503)  # type: ignore[assignment]
    await site.create(site.version())
    await eventually(lambda: seen.count(b"+WPI") >= 2)
    assert set(seen) == {b"+WPI"}


async def test_tries_come_after_growing_pauses(site: Site) -> None:
    """protocol.md, section 6.5: 3 s to 1 min, here much shorter."""
    await site.start_agent()
    site.icms.judge = always(500)  # type: ignore[assignment]
    ordered = await site.create(site.version())
    await tries(site, ordered, 5)
    times = [call.at for call in asked(site, ordered)]
    assert times[4] - times[3] > times[1] - times[0]


async def test_404_is_not_yet(site: Site) -> None:
    """protocol.md, section 6.5: the request may only be late at the control plane."""
    await site.start_agent()
    site.icms.judge = always(404)  # type: ignore[assignment]
    ordered = await site.create(site.version())
    await tries(site, ordered, 2)
    site.icms.judge = lambda _: None
    await site.running(ordered)


async def test_404_for_five_minutes_gives_the_request_up(site: Site) -> None:
    """protocol.md, section 6.5; here 3 s."""
    site.time_scale = 0.01
    await site.start_agent()
    site.icms.judge = always(404)  # type: ignore[assignment]
    ordered = await site.create(site.version())
    over = await site.terminated(ordered)
    assert over.cause == "instance-terminated-precondition-failure"
    await site.settled(CREATION)
    assert site.living() == 0


async def test_412_makes_nothing_and_says_so(site: Site) -> None:
    """protocol.md, section 6.5: the request is closed."""
    await site.start_agent()
    site.icms.judge = always(412)  # type: ignore[assignment]
    ordered = await site.create(site.version())
    over = await site.terminated(ordered)
    assert over.cause == "instance-terminated-precondition-failure"
    assert over.report["status"] == "instance-terminated-by-service"
    await site.settled(CREATION)
    assert len(asked(site, ordered)) == 1
    assert site.icms.states(ordered.id) == ["terminated"] or "running" not in site.icms.states(ordered.id)


async def test_copies_of_a_message_that_waits_make_one_instance_and_are_all_acknowledged(site: Site) -> None:
    """protocol.md, section 6.3: handling is idempotent."""
    await site.start_agent()
    site.icms.judge = always(503)  # type: ignore[assignment]
    ordered = await site.create(site.version())
    await site.send(ordered)
    await site.send(ordered)
    await eventually(lambda: asked(site, ordered))
    assert await site.icms.waiting(CREATION) == 3
    site.icms.judge = lambda _: None
    await site.running(ordered)
    await site.settled(CREATION)
    assert site.living() == 1


async def test_a_known_request_is_acknowledged_at_once_and_reported_again(site: Site) -> None:
    """protocol.md, section 6.9: the control plane orders again when it has heard nothing."""
    await site.start_agent()
    ordered = await site.create(site.version())
    await site.running(ordered)
    count = len(site.icms.reports[ordered.id])
    await site.send(ordered)
    await site.settled(CREATION)
    await eventually(lambda: len(site.icms.reports[ordered.id]) > count)
    assert site.living() == 1


async def test_an_order_that_expires_before_the_answer_is_dropped_and_a_repeated_one_runs(site: Site) -> None:
    """protocol.md, section 6.3: after expiresAt the order was repeated or given up."""
    await site.start_agent()
    site.icms.judge = always(503)  # type: ignore[assignment]
    ordered = await site.create(site.version(), expiresAt=time.time() + 1.5)
    await eventually(lambda: asked(site, ordered))
    await site.settled(CREATION)
    await site.free("CPU", 256)
    site.icms.judge = lambda _: None
    again = Ordered({**ordered.message, "expiresAt": time.time() + 60})
    await site.send(again)
    await site.running(again)


async def test_a_new_key_in_the_file_is_used_at_the_next_call(site: Site) -> None:
    """protocol.md, section 6.5: 401 means read it again."""
    await site.start_agent()
    await site.running(await site.create(site.version()))
    site.icms.identities[CLUSTER] = {"new-key"}
    refused = await site.create(site.version())
    await eventually(lambda: any(call.status == 401 for call in asked(site, refused)))
    key = site.folder / f"{CLUSTER}.key"
    await asyncio.to_thread(key.write_text, "new-key\n")
    await site.running(refused)


async def test_a_projected_token_is_sent_as_it_is(site: Site) -> None:
    """protocol.md, section 6.5."""
    token = site.folder / "token"
    token.write_text("aaa.bbb.ccc")
    site.icms.add_cluster(CLUSTER, "aaa.bbb.ccc")
    command = site.command()
    place = command.index("--key-file")
    command[place : place + 2] = ["--token-file", str(token)]
    site.command = lambda *_, **__: command  # type: ignore[method-assign]
    await site.start_agent()
    assert site.icms.calls[0].headers["Authorization"] == "Bearer aaa.bbb.ccc"
    assert site.callout.accepted == [(CLUSTER, "aaa.bbb.ccc")]
    assert KEY not in json.dumps([call.headers for call in site.icms.calls])
