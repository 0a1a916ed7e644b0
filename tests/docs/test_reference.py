"""The reference pages are what the code generates now."""

from tools.docs.generate import PAGES, stale_pages


def test_reference_pages_are_current():
    stale = stale_pages()
    assert stale == {}, "write them with: nox -s docs -- --write\n" + "\n".join(stale.values())


def test_generating_twice_gives_the_same():
    names = [name for name in PAGES if not name.endswith("cli.md")]  # its programs were started once above
    assert {name: PAGES[name]() for name in names} == {name: PAGES[name]() for name in names}
