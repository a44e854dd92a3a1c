"""The checks of links, file paths and citations: of this tree, and on trees made for the purpose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from scripts.check_links import PROTOCOL, Tree, broken_links, check, missing_paths, wrong_citations

SECTIONS = "# The protocol\n\n## 2. NATS\n\n### 2.1 Names\n\n## 5. The worker\n"


def tree(root: Path, files: Mapping[str, str]) -> Tree:
    """Return a tree with these files and a protocol of three sections."""
    for name, text in {PROTOCOL: SECTIONS, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(root, {PROTOCOL, *files})


def test_all_links_paths_and_citations_of_this_tree_lead_somewhere() -> None:
    assert check(Tree()) == []


@pytest.mark.parametrize(
    "text",
    [
        '"""Names of subjects (protocol.md, section 2.1)."""',
        '"""A worker (protocol.md, sections 2, 2.1 and 5)."""',
        '"""A worker (protocol.md, sections 2 to 5)."""',
        '"""A worker\n    (protocol.md, section\n    5)."""',
        "# Names (protocol.md,\n# section 2.1).\n",
        '"""Names (protocol.md, section 2.1 "Names")."""',
        '"""A peer, written from protocol.md alone."""',
        '"""Hop-by-hop headers (RFC 9110 section 7.6.1)."""',
        '"""As in "Serverless in the Wild", section 3."""',
    ],
)
def test_a_citation_of_a_section_that_exists_is_right(tmp_path: Path, text: str) -> None:
    assert wrong_citations(tree(tmp_path, {"proto/names.py": text})) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('"""Names (protocol.md, section 3)."""', "protocol.md has no section 3"),
        ('"""Names (protocol.md, sections 2 and 2.7)."""', "protocol.md has no section 2.7"),
        ('"""Names (protocol.md, section 2.1 "Streams")."""', "section 2.1 of protocol.md is 'Names'"),
        ('"""Names (protocol.md section 2)."""', "a citation has the form (protocol.md, section N)"),
        ('"""Names (protocol.md, 2)."""', "a citation has the form (protocol.md, section N)"),
        ('"""Names (section 2)."""', "'section 2' of which document? Write (protocol.md, section N)"),
    ],
)
def test_a_wrong_citation_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    made = tree(tmp_path, {"proto/names.py": f"# A comment.\n{text}\n"})
    assert wrong_citations(made) == [f"proto/names.py:2: {problem}"]


def test_a_page_may_speak_of_its_own_sections(tmp_path: Path) -> None:
    assert wrong_citations(tree(tmp_path, {"docs/page.md": "See section 9."})) == []


@pytest.mark.parametrize(
    "link",
    [
        "[text](reference/protocol.md)",
        "[text](reference/protocol.md#21-names)",
        "[text](#a-heading-with-code)",
        "[text](#a-heading-with-code-1)",
        "[text](#own)",
        "[text](../proto/)",
        "[text](https://example.com/nothing#at-all)",
        "![picture](picture.svg)",
        "`[text](nothing.md)`",
        "```\n[text](nothing.md)\n```",
    ],
)
def test_a_link_that_leads_somewhere_is_right(tmp_path: Path, link: str) -> None:
    page = f'# A heading, with `code`\n\n# A heading with code\n\n<a id="own"></a>\n\n{link}\n'
    made = tree(tmp_path, {"docs/page.md": page, "docs/picture.svg": "", "proto/names.py": ""})
    assert broken_links(made) == []


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("[text](nothing.md)", "link nothing.md: there is no such file"),
        ("[text](../../nothing.md)", "link ../../nothing.md: there is no such file"),
        ("[text](reference/protocol.md#x)", f"link reference/protocol.md#x: {PROTOCOL} has no such anchor"),
        ("[text](#nowhere)", "link #nowhere: docs/page.md has no such anchor"),
        ("[text]: nothing.md", "link nothing.md: there is no such file"),
        ('<img src="nothing.svg">', "link nothing.svg: there is no such file"),
    ],
)
def test_a_link_that_leads_nowhere_is_named_with_its_line(tmp_path: Path, link: str, problem: str) -> None:
    made = tree(tmp_path, {"docs/page.md": f"# Page\n\n{link}\n"})
    assert broken_links(made) == [f"docs/page.md:3: {problem}"]


@pytest.mark.parametrize(
    "text",
    [
        "`tests/unit/test_a.py`",
        "`tests/unit/test_a.py::test_one`",
        "`tests/unit/`",
        "`tests/unit/test_*.py`",
        "`tests/{unit,support}/`",
        "`inner/module.py`",
        "`module.py`",
        "`DIR/requests/ID.json`",
        "`POST /v2/nvcf`",
        "`application/json`",
        "`tests/nvcf.log`",
    ],
)
def test_a_path_that_exists_or_is_none_of_ours_is_right(tmp_path: Path, text: str) -> None:
    files = {"tests/unit/test_a.py": "", "tests/support/a.py": "", "gateway/nvcf/inner/module.py": ""}
    assert missing_paths(tree(tmp_path, {**files, "gateway/README.md": text})) == []


@pytest.mark.parametrize(
    "text", ["`tests/unit/test_b.py`", "`tests/chaos/`", "`inner/other.py`", "`other.py`"]
)
def test_a_path_that_does_not_exist_is_named(tmp_path: Path, text: str) -> None:
    files = {
        "tests/unit/test_a.py": "",
        "gateway/nvcf/inner/module.py": "",
        "gateway/README.md": f"\n{text}\n",
    }
    assert missing_paths(tree(tmp_path, files)) == [f"gateway/README.md:2: {text}: there is no such file"]
