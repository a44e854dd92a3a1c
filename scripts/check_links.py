"""Check what the documentation and the code point to: links, file paths and citations of protocol.md.

Three rules, each a function that returns the failures as `PLACE: text`:

- `broken_links`: a relative link in a Markdown file leads to a file that exists, and its anchor exists there.
- `missing_paths`: a file path in backticks in a Markdown file exists.
- `wrong_citations`: a citation has the form `protocol.md, section 2.3` and names a section that exists.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOCOL = "docs/reference/protocol.md"
# The page itself, and what writes wrong citations on purpose.
_EXEMPT = (PROTOCOL, "scripts/check_links.py", "tests/unit/docs/test_citations.py")

_FENCE = re.compile(r"^( *)(```+|~~~+).*?^ *\2`*~*[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^()\s<>]+(?:\([^()\s]*\)[^()\s<>]*)*)>?(?:\s+\"[^\"]*\")?\s*\)")
_DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s+<?([^\s>]+)>?", re.MULTILINE)
_ATTRIBUTE = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)=\"([^\"]+)\"")
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
_ID = re.compile(r"<[a-z]+\b[^>]*?\b(?:id|name)=\"([^\"]+)\"|\{[^{}\n]*?#([\w.:-]+)[^{}\n]*?\}")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)

_FILE = re.compile(r"[\w.{},*-]+(?:/[\w.{},*-]+)*/?")
_OURS = re.compile(r".*\.(?:py|md|proto)")
_SUFFIX = re.compile(r"[^.]+|.*\.(?:py|md|proto|toml|ya?ml|json|svg|sh|lock)")

_NUMBERS = r"\d+(?:\.\d+)*(?:(?:, +| +and +| +to +)\d+(?:\.\d+)*)*"
_SECTION = re.compile(rf"\b[Ss]ections? +({_NUMBERS})(?: +\"([^\"]+)\")?")
_MALFORMED = re.compile(rf"(?<![/\w-])protocol\.md(?=,? +(?:\d|[Ss]ection))(?!, +sections? +{_NUMBERS})")
_BREAK = re.compile(r"[ \t]*\n[ \t]*(?:(?:#:?|//)[ \t]?)?")
_PROTOCOL = re.compile(r"(?<![/\w-])protocol\.md, +$")
_OTHER_DOCUMENT = re.compile(r"(?:RFC[ -]\d+|ADR-\d+|HTML|\"|protocol\.md),? +$")
_TITLE = re.compile(r"^#{2,6} (\d+(?:\.\d+)*)\.? (.+)$", re.MULTILINE)


class Tree:
    """The files of a working copy, by path relative to its top; `files` None means what git knows of."""

    def __init__(self, root: Path = ROOT, files: Iterable[str] | None = None) -> None:
        self.root = root
        self.files = sorted(_listed(root) if files is None else files)
        self.known = set(self.files)
        self.folders = {parent.as_posix() for name in self.files for parent in Path(name).parents}
        self._texts: dict[str, str] = {}
        self._anchors: dict[str, set[str]] = {}

    def having(self, *suffixes: str) -> list[str]:
        """Return the files whose names end so."""
        return [name for name in self.files if name.endswith(suffixes)]

    def text(self, name: str) -> str:
        """Return the content of a file."""
        if name not in self._texts:
            self._texts[name] = (self.root / name).read_text(encoding="utf-8")
        return self._texts[name]

    def exists(self, name: str) -> bool:
        """Return whether a file or folder has this path or ends with it. `*` and `{a,b}` are patterns."""
        return all(self._exists(each) for each in _expanded(name.rstrip("/")))

    def _exists(self, name: str) -> bool:
        if "*" not in name:
            return name in self.tails
        pattern = re.compile("[^/]*".join(re.escape(part) for part in name.split("*")))
        return any(pattern.fullmatch(each) for each in self.tails)

    @cached_property
    def tails(self) -> set[str]:
        """The paths of all files and folders, and what is left of them without their first folders."""
        parts = [name.split("/") for name in (*self.files, *self.folders)]
        return {"/".join(each[start:]) for each in parts for start in range(len(each))}

    def anchors(self, name: str) -> set[str]:
        """Return the anchors of a Markdown file: those of its headings, and those that it sets itself."""
        if name not in self._anchors:
            prose = _FENCE.sub("", self.text(name))
            found = {anchor for pair in _ID.findall(prose) for anchor in pair if anchor}
            seen: dict[str, int] = {}
            for heading in _HEADING.findall(prose):
                for slug in set(_slugs(heading)):
                    number = seen.get(slug, 0)
                    seen[slug] = number + 1
                    found.update((slug,) if not number else (f"{slug}-{number}", f"{slug}_{number}"))
            self._anchors[name] = found
        return self._anchors[name]


def _listed(root: Path) -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode()
    return [name for name in listed.split("\0") if name and (root / name).is_file()]


def _slugs(heading: str) -> tuple[str, str]:
    """Return the anchors that GitHub and MkDocs make of a heading."""
    text = re.sub(r"\{[^{}]*\}$|`|\*\*|<[^>]+>", "", heading)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text).strip().lower()
    kept = re.sub(r"[^\w\s-]", "", text)
    return kept.replace(" ", "-"), re.sub(r"[-\s]+", "-", kept).strip("-")


def _expanded(name: str) -> Iterator[str]:
    found = re.search(r"\{([^{}]*)\}", name)
    if found is None:
        yield name
        return
    for part in found[1].split(","):
        yield from _expanded(name[: found.start()] + part.strip() + name[found.end() :])


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def _blanked(match: re.Match[str]) -> str:
    """Return as many lines as the match has, so that line numbers stay right."""
    return "\n" * match[0].count("\n")


def _joined(folder: str, target: str) -> str | None:
    """Return the path of a link that stands in a file of `folder`; None when it leaves the tree."""
    parts = [] if folder == "." else folder.split("/")
    for part in target.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts) or "."


def broken_links(tree: Tree) -> list[str]:
    """Return the relative links of Markdown files that lead nowhere."""
    failures = []
    for name in tree.having(".md"):
        prose = _CODE.sub(_blanked, _FENCE.sub(_blanked, tree.text(name)))
        for pattern in (_LINK, _DEFINITION, _ATTRIBUTE):
            for match in pattern.finditer(prose):
                problem = None if _SCHEME.match(match[1]) else _link_problem(tree, name, match[1])
                if problem is not None:
                    failures.append(f"{name}:{_line(prose, match.start())}: link {match[1]}: {problem}")
    return failures


def _link_problem(tree: Tree, name: str, target: str) -> str | None:
    path, _, anchor = target.partition("#")
    found = _joined(Path(name).parent.as_posix(), path) if path else name
    if found is None or not (found in tree.known or found in tree.folders):
        return "there is no such file"
    if anchor and found.endswith(".md") and anchor not in tree.anchors(found):
        return f"{found} has no such anchor"
    return None


def missing_paths(tree: Tree) -> list[str]:
    """Return the file paths in backticks of Markdown files that do not exist.

    The changelog may name files of the past.
    """
    failures = []
    tops = {name.split("/")[0] for name in tree.files if "/" in name}
    for name in tree.having(".md"):
        if name == "CHANGELOG.md":
            continue
        prose = _FENCE.sub(_blanked, tree.text(name))
        for match in _CODE.finditer(prose):
            text = match[2].strip().split("::")[0]
            if _FILE.fullmatch(text) and not _is_there(tree, tops, name, text):
                failures.append(f"{name}:{_line(prose, match.start())}: `{text}`: there is no such file")
    return failures


def _is_there(tree: Tree, tops: set[str], name: str, text: str) -> bool:
    """Return whether a text in backticks is no path of this tree, or one that exists.

    A path may count from any folder: READMEs name the files of their package.
    """
    folder = Path(name).parent.as_posix()
    top, _, rest = text.partition("/")
    if tree.exists(text) or tree.exists(_joined(folder, text) or text):
        return True
    if not rest:
        # A user's own file in an example is none of ours.
        ours = not folder.startswith(("docs", "examples")) or text.startswith(("test_", "peer_"))
        return not (ours and text.endswith(".py"))
    is_ours = _OURS.fullmatch(text) or (
        top in tops and _SUFFIX.fullmatch(text.rstrip("/").rpartition("/")[2])
    )
    return not is_ours or top.isupper() or (top not in tops and folder.startswith(("docs", "examples")))


def wrong_citations(tree: Tree) -> list[str]:
    """Return the citations that name no section of the protocol, or do not have the form of citations."""
    titles = {number: title.strip() for number, title in _TITLE.findall(tree.text(PROTOCOL))}
    failures = []
    for name in tree.having(".py", ".pyi", ".proto", ".md"):
        text = tree.text(name)
        if name in _EXEMPT or not ("ection" in text or "protocol.md" in text):
            continue
        # A citation may be broken over two lines; the offsets stay.
        flat = _BREAK.sub(lambda match: " " * len(match[0]), text)
        for offset, problem in _citations(flat, titles, is_page=name.endswith(".md")):
            failures.append(f"{name}:{_line(text, offset)}: {problem}")
    return failures


def _citations(flat: str, titles: dict[str, str], *, is_page: bool) -> Iterator[tuple[int, str]]:
    for match in _SECTION.finditer(flat):
        before = flat[max(0, match.start() - 80) : match.start()]
        if _PROTOCOL.search(before):
            for problem in _title_problems(titles, match[1], match[2]):
                yield match.start(), problem
        elif not is_page and not _OTHER_DOCUMENT.search(before):
            # Pages have sections of their own to speak of.
            yield match.start(), f"{match[0]!r} of which document? Write (protocol.md, section N)"
    for match in _MALFORMED.finditer(flat):
        yield match.start(), "a citation has the form (protocol.md, section N)"


def _title_problems(titles: dict[str, str], numbers: str, title: str | None) -> Iterator[str]:
    for number in re.findall(r"\d+(?:\.\d+)*", numbers):
        if number not in titles:
            yield f"protocol.md has no section {number}"
        elif title is not None and titles[number] != title:
            yield f"section {number} of protocol.md is {titles[number]!r}"


def check(tree: Tree) -> list[str]:
    """Return the failures of all rules."""
    return broken_links(tree) + missing_paths(tree) + wrong_citations(tree)


if __name__ == "__main__":
    failed = check(Tree())
    print("\n".join(failed))
    sys.exit(bool(failed))
