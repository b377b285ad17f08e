"""tests/README.md: what it names is there, and what is there it names.

Who changes a source file looks up there which tests to run. A test that is not in the table is not
found, and a name that no file has any more sends the reader nowhere.
"""

import re

from server import REPOSITORY

TESTS = REPOSITORY / "tests"
README = (TESTS / "README.md").read_text(encoding="utf-8")
TABLE = [line for line in README.split("\n") if re.match(r"\| `.*\|.*\|.*\|.*\|", line)]


def names_in(text):
    """What stands in backquotes."""
    return set(re.findall(r"`([^`]+)`", text))


def test_every_source_file_has_a_row():
    rows = set().union(*(names_in(line.split("|")[1]) for line in TABLE))
    sources = {path.name for path in (*REPOSITORY.glob("*.c"), *REPOSITORY.glob("*.h"))
               if path.suffix == ".c" or not path.with_suffix(".c").exists()}
    assert sources == {name for name in rows if re.search(r"\.[ch]$", name)}


def test_every_test_is_in_the_table():
    named = set().union(*(names_in(line) for line in TABLE))
    tests = [*TESTS.glob("unit/test_*.c"), *TESTS.glob("server/test_*.py"),
             *TESTS.glob("crash/test_*.py")]
    fuzzers = [path.stem for path in TESTS.glob("fuzz/fuzz_*.c") if path.stem != "fuzz_main"]
    assert tests and fuzzers
    missing = {path.name for path in tests}.union(fuzzers) - named - {"test_layout.py"}
    assert not missing, f"tests/README.md does not say which source files these test: {missing}"


def test_every_file_that_is_named_is_there():
    there = {path.name for path in TESTS.rglob("*")} | {path.name for path in REPOSITORY.iterdir()}
    named = {name for name in names_in(README)
             if re.search(r"^\w+\.(c|h|py|mk|ini|svg)$", name) and "NAME" not in name}
    assert len(named) > 40 and not named - there, named - there
    for path in re.findall(r"(?<!/)\btests/[\w./-]+\w", README):
        assert (REPOSITORY / path).exists(), path


def test_every_folder_has_a_row():
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and path.name.isalpha()}
    assert folders == set(re.findall(r"^\| `(\w+)/` \|", README, re.M))
