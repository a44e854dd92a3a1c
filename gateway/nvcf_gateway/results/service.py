"""Creates the stores of requests, bodies and responses that are kept."""

from __future__ import annotations

from nvcf_broker.connection import BrokerClient
from nvcf_broker.errors import BrokerError
from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.durability import Durability
from nvcf_gateway.errors import SetupError
from nvcf_gateway.queue.regional_buckets import RegionalBuckets
from nvcf_gateway.quotas.kept_answers import KeptAnswers
from nvcf_gateway.quotas.usage import Usage
from nvcf_gateway.results.retention import Retention
from nvcf_gateway.results.store import ResultStore
from nvcf_gateway.results.tracking import Tracking
from nvcf_proto.stores import BODIES, RESULTS


async def start_retention(
    client: BrokerClient,
    requests: ReplyInbox,
    config: GatewayConfig,
    kept: KeptAnswers,
    durability: Durability,
    usage: Usage,
) -> Retention:
    """Create what is missing in the broker and return what keeps calls there. Raises SetupError."""
    tracking, ttl = Tracking(client, requests, config), config.results_ttl
    bodies = RegionalBuckets(client, requests, config, "bodies", ttl=ttl, store=BODIES)
    stores = RegionalBuckets(
        client, requests, config, "results", ttl=ttl, store=RESULTS, max_bytes=config.results_max_bytes
    )
    results = {
        region: ResultStore(client, bucket, durability, kept) for region, bucket in stores.by_region.items()
    }
    try:
        await tracking.ensure()
        for store in results.values():
            await store.start()
        # Bodies are kept most of all while a broker node is away: then is no time to create their bucket.
        await bodies.own.ensure()
    except BrokerError as error:
        raise SetupError(str(error)) from None
    return Retention(config, bodies, results, tracking, durability, usage)
