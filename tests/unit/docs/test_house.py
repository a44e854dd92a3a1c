"""The rules of the house, on trees made for the purpose."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.check_house import MAX_LINES, long_files, missing_docstrings
from scripts.check_links import Tree

MODULE = "broker/nvcf_broker/module.py"


def tree(root: Path, name: str, text: str) -> Tree:
    """Return a tree with one file."""
    path = root / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return Tree(root, [name])


@pytest.mark.parametrize(
    ("name", "lines", "failures"),
    [
        (MODULE, MAX_LINES, 0),
        (MODULE, MAX_LINES + 1, 1),
        ("tests/test_a.py", MAX_LINES + 1, 1),
        ("proto/nvcf_proto/pb/nvcf_pb2.py", MAX_LINES + 1, 0),
    ],
)
def test_a_file_has_a_bound(tmp_path: Path, name: str, lines: int, failures: int) -> None:
    assert len(long_files(tree(tmp_path, name, "\n" * lines))) == failures


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("", ["1: module"]),
        ('"""Text."""\ndef function(): ...', ["2: function function"]),
        ('"""Text."""\nasync def function(): ...', ["2: function function"]),
        ('"""Text."""\nclass A:\n    def method(self): ...', ["2: class A", "3: method A.method"]),
        ('"""Text."""\nclass A:\n    """Text."""\n    @property\n    def b(self): ...', ["5: method A.b"]),
        ('"""Text."""\ndef _function(): ...\nclass _A:\n    def method(self): ...', []),
        ('"""Text."""\nclass A:\n    """Text."""\n    def __init__(self): ...', []),
        ('"""Text."""\nclass A:\n    """Text."""\n    @override\n    def method(self): ...', []),
        ('"""Text."""\ndef function():\n    """Text."""\n    def inner(): ...', []),
        ('"""Text."""\nclass A(logging.Filter):\n    """Text."""\n    def filter(self): ...', []),
    ],
)  # fmt: skip
def test_public_names_need_a_docstring(tmp_path: Path, code: str, missing: list[str]) -> None:
    code = code or "value = 1"
    assert missing_docstrings(tree(tmp_path, MODULE, code))["nvcf_broker"] == [
        f"{MODULE}:{each}" for each in missing
    ]


@pytest.mark.parametrize("base", ["Base", "Generic[T], Base", "Middle"])
def test_a_base_class_documents_for_its_children(tmp_path: Path, base: str) -> None:
    code = f'''"""Text."""
class Base:
    """Text."""
    def method(self):
        """Text."""
class Middle(Base):
    """Text."""
class A({base}):
    """Text."""
    def method(self): ...
    def other(self): ...
'''
    found = missing_docstrings(tree(tmp_path, MODULE, code))["nvcf_broker"]
    assert found == [f"{MODULE}:11: method A.other"]


def test_a_protocol_documents_for_the_classes_that_have_all_of_it(tmp_path: Path) -> None:
    code = '''"""Text."""
class Sink(Protocol):
    """Text."""
    def write(self):
        """Text."""
    def close(self):
        """Text."""
class A:
    """Text."""
    def write(self): ...
    def close(self): ...
class B:
    """Text."""
    def write(self): ...
'''
    found = missing_docstrings(tree(tmp_path, MODULE, code))["nvcf_broker"]
    assert found == [f"{MODULE}:14: method B.write"]
