"""Files of the repository as pages of the site, and links between files as links between pages.

The pages in docs/ link to each other and to other files of the repository by relative paths, so that the links also
work where the repository is browsed. A linked source file gets a page with its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath

from builder.api_pages import page_of_module

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "vulnerabilities.md",
    "examples/configs/README.md": "processes.md",
}
"""Files outside of docs/ that are pages of the site."""
LANGUAGES = {".py": "python", ".mjs": "js", ".sh": "sh", ".toml": "toml", ".yaml": "yaml", ".md": "markdown"}
SHOWN = (*LANGUAGES, ".txt", ".jsonl")
"""The suffixes of the files of a linked folder that its page shows."""
LINK = re.compile(r"(?<=\]\()([^()\s#]+)?(#[^()\s]*)?(?=\))")
FENCE = re.compile(r"^(```\w+) [\w ]+$", re.MULTILINE)
"""The first line of a code block with words after the language, which tests use and Markdown extensions reject."""
CODE_IN_CELL = re.compile(r"^\|.*`[^`]*\\\|.*$", re.MULTILINE)
"""A row of a table with code that has an escaped bar. GitHub removes the escape, Python-Markdown shows it."""
BLOCK = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def repository_pages() -> dict[str, str]:
    """The Markdown of the pages that are files outside of docs/, and of every source file that a page links to."""
    pages = {page: (ROOT / path).read_text(encoding="utf-8") for path, page in PAGES.items()}
    sources = {ROOT / path for path in PAGES} | set((ROOT / "docs").glob("*.md"))
    for source in sorted(sources):
        for path in _linked(source):
            if _page_of(path, "") is None and (ROOT / path).exists():
                pages[_source_page(path)] = _show(path)
    return pages


def site_markdown(markdown: str, page: str) -> str:
    """The Markdown of a page with links to other pages of the site, and with plain code blocks."""
    source = PurePosixPath(next((path for path, name in PAGES.items() if name == page), f"docs/{page}"))
    if page.startswith("api/") or page.startswith("sources/"):
        return markdown

    def link(found: re.Match[str]) -> str:
        target, anchor = found[1] or "", found[2] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return found[0]
        path = PurePosixPath(posixpath.normpath(source.parent / target))
        known = _page_of(path, anchor)
        if known is None and not (ROOT / path).exists():
            return found[0]
        return posixpath.relpath(known or _source_page(path), posixpath.dirname(page) or ".")

    parts = BLOCK.split(markdown)
    parts[0::2] = [CODE_IN_CELL.sub(_unescape_bars, LINK.sub(link, part)) for part in parts[0::2]]
    return FENCE.sub(r"\1", "".join(parts))


def _unescape_bars(row: re.Match[str]) -> str:
    return re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row[0])


def _linked(source: Path) -> list[PurePosixPath]:
    """The files and folders of the repository that a file links to, as paths from its root."""
    text = BLOCK.sub("", source.read_text(encoding="utf-8"))
    targets = [found[1] for found in LINK.finditer(text) if found[1] and "://" not in found[1]]
    folder = source.parent.relative_to(ROOT).as_posix()
    return [PurePosixPath(posixpath.normpath(posixpath.join(folder, target))) for target in targets]


def _page_of(path: PurePosixPath, anchor: str) -> str | None:
    """The page and anchor of a file; None if the file is none of the pages."""
    if str(path) in PAGES:
        return PAGES[str(path)] + anchor
    if path.parts[0] == "docs":
        return "/".join(path.parts[1:]) + anchor
    entry = page_of_module(Path(path)) if path.suffix == ".py" else None
    if entry is None:
        return None
    page, module = entry
    return f"{page}#{module}.{anchor[1:]}" if anchor else page


def _source_page(path: PurePosixPath) -> str:
    return f"sources/{path}.md"


def _show(path: PurePosixPath) -> str:
    """A page with the text of a file, or of all files of a folder."""
    whole = ROOT / path
    files = [each for each in sorted(whole.rglob("*")) if each.suffix in SHOWN] if whole.is_dir() else [whole]
    parts = [f"# `{path}`\n"]
    for file in files:
        text = file.read_text(encoding="utf-8").rstrip()
        heading = "" if file == whole else f"## `{file.relative_to(whole).as_posix()}`\n\n"
        parts.append(f"{heading}````{LANGUAGES.get(file.suffix, 'text')}\n{text}\n````\n")
    return "\n".join(parts)
