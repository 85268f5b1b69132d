"""The documentation's site: built strictly, as `make docs` does, and opened in a browser without server or network."""

import pytest
from browsing import pages_of
from conftest import ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config

HOOK = ROOT / "docs" / "hooks" / "outside_links.py"


def built(config, folder):
    """The site of a configuration; a warning, a broken link say, is an error."""
    build(load_config(str(config), site_dir=str(folder), strict=True))
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return built(ROOT / "mkdocs.yml", tmp_path_factory.mktemp("site"))


@pytest.mark.slow
def test_every_page_is_there_and_what_they_link_to_outside(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= {path.relative_to(site) for path in site.rglob("*.html")}
    assert "FastAPI" in (site / "repository" / "examples" / "serve.py.html").read_text(encoding="utf-8")
    assert not list(site.rglob("*.py"))
    api = (site / "api" / "data.html").read_text(encoding="utf-8")
    assert 'id="mm_fibinet.dataloader.MMCTRDataLoader"' in api and "a new seeded permutation every epoch" in api


@pytest.mark.slow
def test_pages_open_from_files_alone_and_stay_within_a_phone(site, browser):
    paths = [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]  # that one is for servers
    with pages_of(browser, site / "index.html") as open_at:
        desktop, phone = open_at(1400), open_at(390, "dark")
        for path in paths:
            phone.goto(path.as_uri())
            assert phone.evaluate("document.documentElement.scrollWidth") == 390, path
        desktop.goto((site / "settings.html").as_uri())
        assert desktop.evaluate("document.documentElement.scrollWidth") == 1400


@pytest.mark.slow
def test_the_search_works_without_a_server(site, browser):
    with pages_of(browser, site / "index.html") as open_at:
        page = open_at(1400)
        page.click(".md-search__input")
        page.keyboard.type("reduction_ratio")
        page.wait_for_selector(".md-search-result__link", timeout=10_000)
        found = [link.get_attribute("href") for link in page.query_selector_all(".md-search-result__link")]
        assert any("settings.html" in href for href in found), found


def test_links_between_docs_and_the_rest_of_the_repository(tmp_path):
    docs = tmp_path / "docs"
    (docs / "deep").mkdir(parents=True)
    (docs / "index.md").write_text("# A\n\n[r](../README.md#two)\n\n```\n[x](../gone.md)\n```\n")
    (docs / "deep" / "page.md").write_text("# B\n\n[tool](../../tool.py), [out](https://example.org/a.md)\n")
    (tmp_path / "README.md").write_text("# R\n\n## Two\n\n[page](docs/deep/page.md) ![picture](docs/p.png)\n")
    (tmp_path / "tool.py").write_text('"""```"""\n')
    (docs / "p.png").write_bytes(b"")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"site_name: S\nuse_directory_urls: false\nhooks: [{HOOK}]\nplugins: []\n")
    site = built(config, tmp_path / "site")
    index = (site / "index.html").read_text()
    assert 'href="repository/index.html#two"' in index and "[x](../gone.md)" in index
    readme = (site / "repository" / "index.html").read_text()
    assert 'href="../deep/page.html"' in readme and 'src="../p.png"' in readme
    page = (site / "deep" / "page.html").read_text()
    assert 'href="../repository/tool.py.html"' in page and 'href="https://example.org/a.md"' in page
    tool = (site / "repository" / "tool.py.html").read_text()
    assert "<h1" in tool and "<pre>" in tool and "```" in tool


def test_a_link_to_nothing_outside_is_an_error(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[gone](../gone.py)\n")
    (tmp_path / "mkdocs.yml").write_text(f"site_name: S\nhooks: [{HOOK}]\nplugins: []\n")
    with pytest.raises(BaseException, match="strict mode"):
        built(tmp_path / "mkdocs.yml", tmp_path / "site")
