"""Every relative link in the documents leads to a file, and every anchor to a heading."""

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


def links(text):
    for token in MarkdownIt().enable("table").parse(text):
        for child in token.children or []:
            target = child.attrs.get("href") or child.attrs.get("src")
            if target:
                yield str(target)


def anchors(path):
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page):
    for target in links(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert list(broken(page)) == []


def reachable(start):
    """Documents that one comes to by links."""
    found, front = set(), [start.resolve()]
    while front:
        page = front.pop()
        if page in found or page.suffix != ".md":
            continue
        found.add(page)
        targets = (target.partition("#")[0] for target in links(page.read_text()))
        front += [(page.parent / target).resolve() for target in targets if target and ":" not in target]
    return found


def test_every_document_is_reached_from_the_readme():
    for_readers = {page for page in PAGES if "tests" not in page.relative_to(ROOT).parts}
    assert for_readers - reachable(ROOT / "README.md") == set()


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Here\n[a](gone.md) [b](#here) [c](page.md#there) [d](https://example.org)\n")
    assert list(broken(page)) == ["gone.md", "page.md#there"]
