"""`nvcf quotas`."""

from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, UrlOption
from nvcf_cli.api import Json
from nvcf_cli.screen import print_json, print_table
from nvcf_proto.budget import size_text

_NEARLY = 0.8


def quotas(
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what your account uses of its quotas.

    At a quota, calls get 429 and uploads and new functions 507; other accounts notice nothing.

    \b
    Examples:
      nvcf quotas
      nvcf quotas --json
    """
    found = Access(data, url, key_file).run(lambda api: api.quotas())
    if as_json:
        print_json(found)
        return
    print_table(("QUOTA", "USED", "LIMIT", "STATE"), [row(each) for each in found], "no quotas")


def row(quota: Json) -> tuple[str, str, str, str]:
    """Return the row of one quota. Pure."""
    name, used, limit = str(quota.get("quota")), quota.get("used"), quota.get("limit")
    in_bytes = name.endswith("-bytes")
    state = ""
    if isinstance(used, int) and isinstance(limit, int):
        state = "at the limit" if used >= limit else "nearly full" if used > limit * _NEARLY else ""
    return name, _amount(used, in_bytes), _amount(limit, in_bytes), state


def _amount(value: object, in_bytes: bool) -> str:
    if not isinstance(value, int):
        return "-"
    return size_text(value) if in_bytes else f"{value:,}"
