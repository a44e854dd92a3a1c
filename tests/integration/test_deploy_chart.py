"""`nvcf deploy --helm-chart` against a real gateway: the function, its values, and a new version of it."""

from __future__ import annotations

from pathlib import Path

from tests.integration.test_cluster_commands import Command
from tests.support.platform.gateways import running_platform

CHART = ("--helm-chart", "oci://registry.example/charts/words:0.1.0", "--helm-service", "words")


async def test_a_chart_is_deployed_with_its_values_and_again_with_others(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("replicas: 2\nignored: [the, of]\n")
    scale = (
        "--port",
        "8000",
        "--gpu",
        "H100",
        "--instance-type",
        "NCP.GPU.H100_1x",
        "--min",
        "0",
        "--max",
        "4",
    )
    async with running_platform(tmp_path) as platform:
        command = Command(platform)
        first = await command.json("deploy", *CHART, *scale, "--values", str(values))
        assert first["name"] == "words"

        async def deployed(made: dict[str, str]) -> dict[str, object]:
            path = f"functions/{made['functionId']}/versions/{made['functionVersionId']}"
            record = (await platform.call("GET", f"/v2/nvcf/{path}"))["function"]
            assert (record["helmChart"], record["helmChartServiceName"]) == (CHART[1], "words")
            assert record["inferencePort"] == 8000
            deployment = (await platform.call("GET", f"/v2/nvcf/deployments/{path}"))["deployment"]
            (specification,) = deployment["deploymentSpecifications"]
            return {"most": specification["maxInstances"], **specification["configuration"]}

        assert await deployed(first) == {"most": 4, "replicas": 2, "ignored": ["the", "of"]}
        await command.ok("scale", "words", "--max", "3")
        assert await deployed(first) == {"most": 3, "replicas": 2, "ignored": ["the", "of"]}
        values.write_text('{"replicas": 3}')
        second = await command.json("deploy", *CHART, *scale, "--values", str(values))
        assert (second["functionId"], second["replacedVersions"]) == (first["functionId"], 1)
        assert await deployed(second) == {"most": 4, "replicas": 3}
        code, _, said = await command.run("deploy", *CHART[:1], "registry.example/words", *CHART[2:], *scale)
        assert code == 1
        assert "helmChart" in said
