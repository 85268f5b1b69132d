"""Links that leave docs/: the files they name become pages of the site.

On a repository's own page a link to ../notebooks/task1.ipynb opens the file there. The site has to work without a
network and knows no address of a repository, so it takes each such file in: markdown as a page like the others, a
notebook cell by cell, all else as a block of code. What an outside page links to follows in the same way.
"""

import json
import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

FOLDER = "repository/"  # of the site, where they are
LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")
FENCE = re.compile(r"^ *(`{3,})[^\n]*\n.*?^ *\1 *$", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".toml": "toml", ".cff": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside docs/ that a page links to or the navigation names."""
    root = Path(config.config_file_path).parent
    docs = Path(config.docs_dir).relative_to(root).as_posix()
    waiting = _outside_in(config.nav or [])
    for file in files.documentation_pages():
        waiting += _outside_of(file.content_string, f"{docs}/{file.src_uri}", docs)
    while waiting:
        path = waiting.pop()
        if files.get_file_from_path(_page_uri(path)) is not None or not (root / path).exists():
            continue  # a name that is not there is left to MkDocs, which says so
        if (root / path).is_dir():
            raise PluginError(f"{path}: a page links to this folder, expected a file")
        content = (root / path).read_text(encoding="utf-8")
        page = File.generated(config, _page_uri(path), content=_as_markdown(path, content))
        page.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(page)
        if path.endswith(".md"):
            waiting += _outside_of(content, path, docs)
    return files


def on_page_markdown(markdown: str, *, page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between docs/ and what is outside into links between pages of the site."""
    docs = Path(config.docs_dir).relative_to(Path(config.config_file_path).parent).as_posix()
    uri = page.file.src_uri
    path = _repository_path(uri, docs)

    def on_site(match: re.Match) -> str:
        target = _target(match[0], path)
        if target is None:
            return match[0]
        fragment = urlsplit(match[0]).fragment
        inside = target.removeprefix(f"{docs}/")
        found = inside if inside != target else _page_uri(target)
        if files.get_file_from_path(found) is None:
            return match[0]
        return posixpath.relpath(found, posixpath.dirname(uri)) + (f"#{fragment}" if fragment else "")

    return _outside_code(markdown, lambda text: LINK.sub(on_site, text))


def _outside_in(nav: list | dict | str) -> list[str]:
    """The files outside docs/ that the navigation names."""
    if isinstance(nav, str):
        return [nav.removeprefix(FOLDER)] if nav.startswith(FOLDER) else []
    parts = nav.values() if isinstance(nav, dict) else nav
    return [path for part in parts for path in _outside_in(part)]


def _outside_of(markdown: str, path: str, docs: str) -> list[str]:
    """The files outside docs/ that a page links to, from the repository's root."""
    found: list[str] = []
    _outside_code(markdown, lambda text: found.extend(LINK.findall(text)) or text)
    targets = [_target(link, path) for link in found]
    return [target for target in targets if target and not target.startswith(f"{docs}/")]


def _target(link: str, path: str) -> str | None:
    """Where a relative link of the file `path` leads, from the repository's root; None for other links."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), parts.path))


def _repository_path(uri: str, docs: str) -> str:
    """Where the text of a page is, from the repository's root."""
    return uri.removeprefix(FOLDER) if uri.startswith(FOLDER) else f"{docs}/{uri}"


def _page_uri(path: str) -> str:
    return FOLDER + (path if path.endswith(".md") else f"{path}.md")


def _outside_code(markdown: str, change) -> str:
    """The text with `change` applied to what is not in a fenced block."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def _as_markdown(path: str, content: str) -> str:
    if path.endswith(".md"):
        return content
    if path.endswith(".ipynb"):
        cells = json.loads(content)["cells"]
        texts = ["".join(cell["source"]) for cell in cells]
        body = [
            text if cell["cell_type"] == "markdown" else _fenced(text, "python")
            for cell, text in zip(cells, texts, strict=True)
        ]
        return "\n\n".join([f"*{path}*", *body])
    return f"# {path}\n\n{_fenced(content, LANGUAGES.get(Path(path).suffix, 'text'))}\n"


def _fenced(text: str, language: str) -> str:
    longest = max([len(run) for run in re.findall(r"`+", text)] + [2])
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
