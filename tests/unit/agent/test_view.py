"""What an instance with a user of its own sees of the file system."""

from __future__ import annotations

from pathlib import Path

from nvcf_agent.backends.view import interpreter_folders, resolve_links, view, visible_entries


def steps(needed: list[str], opened: list[str], closed: set[str], **more: list[str]) -> list[tuple[str, str]]:
    found = view(
        [Path(each) for each in needed],
        [Path(each) for each in opened],
        dict.fromkeys(map(Path, more.get("links", [])), "target"),
        lambda path: str(path) in closed,
        [Path(each) for each in more.get("hidden", [])],
    )
    return [(step.kind, str(step.path)) for step in found]


def test_nothing_is_covered_where_everything_is_open() -> None:
    assert steps(["/usr/lib/x", "/srv/data/i"], ["/srv/f"], set()) == []


def test_a_closed_folder_is_covered_and_what_is_needed_bound_into_it() -> None:
    assert steps(["/root/py", "/root/d/i"], ["/root/f"], {"/root", "/root/d"}) == [
        ("cover", "/root"),
        ("bind", "/root/d/i"),
        ("bind", "/root/f"),
        ("bind", "/root/py"),
    ]


def test_a_closed_folder_within_what_is_bound_is_covered_again() -> None:
    assert steps(["/root/f/d/i"], ["/root/f"], {"/root", "/root/f/d"}) == [
        ("cover", "/root"),
        ("bind", "/root/f"),
        ("cover", "/root/f/d"),
        ("bind", "/root/f/d/i"),
    ]


def test_a_closed_working_directory_shows_what_others_may_read_of_it() -> None:
    assert steps(["/t/w/f.py"], ["/t/w"], {"/t/w"}) == [("cover", "/t/w"), ("bind", "/t/w/f.py")]


def test_a_private_folder_is_covered_also_where_others_could_enter_it() -> None:
    assert steps(["/srv/d/i"], ["/srv"], set(), hidden=["/srv/d"]) == [
        ("cover", "/srv/d"),
        ("bind", "/srv/d/i"),
    ]


def test_links_are_made_only_where_they_are_hidden() -> None:
    found = steps(["/root/a"], [], {"/root"}, links=["/root/l", "/root/a/l", "/usr/l"])
    assert ("link", "/root/l") in found
    assert [kind for kind, _ in found] == ["cover", "bind", "link"]


def test_the_root_is_never_covered() -> None:
    assert steps(["/a"], ["/"], {"/"}) == []


def test_links_on_the_way_are_found(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(tmp_path / "real")
    real, links = resolve_links(tmp_path / "one" / ".." / "one" / "file")
    assert real == tmp_path / "real" / "file"
    assert links == {tmp_path / "one": "two", tmp_path / "two": str(tmp_path / "real")}
    (tmp_path / "loop").symlink_to("loop")
    resolve_links(tmp_path / "loop")  # ends


def test_hidden_closed_and_special_entries_are_not_shown(tmp_path: Path) -> None:
    for name, mode in (("a.py", 0o644), ("key", 0o600), (".env", 0o644)):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(mode)
    for name, mode in (("open", 0o755), ("closed", 0o700)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    (tmp_path / "link").symlink_to("a.py")
    assert {path.name for path in visible_entries(tmp_path)} == {"a.py", "open"}


def test_an_environment_names_its_base_and_linked_packages(tmp_path: Path) -> None:
    base, environment, package = tmp_path / "base", tmp_path / "venv", tmp_path / "package"
    site = environment / "lib" / "python3.12" / "site-packages"
    for folder in (base / "bin", environment / "bin", site, package):
        folder.mkdir(parents=True)
    (base / "bin" / "python").write_text("")
    (environment / "bin" / "python").symlink_to(base / "bin" / "python")
    (environment / "pyvenv.cfg").write_text(f"home = {base}/bin\nversion = 3.12\n")
    (site / "p.pth").write_text(f"{package}\nimport os\n/missing\n")
    found = interpreter_folders(environment / "bin" / "python")
    assert found == [environment, base, package]
    assert interpreter_folders(Path("/usr/bin/env")) == []
