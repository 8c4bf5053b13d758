"""The pages in a browser: every link leads somewhere, the console is silent, and nothing scrolls sideways."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from npmoe.reproduce import __main__ as command

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGES = ("index.html", "sc1.html", "ga.html", "my.html", "sc2.html")

#: Loads the page in a frame as wide as a phone, and says how wide it is and what cannot be seen in full.
PROBE = """<!doctype html><meta charset="utf-8"><body><script>
const frame = document.createElement("iframe");
frame.style = "width:WIDTHpx;height:800px;border:0";
frame.onload = () => {
  const page = frame.contentDocument, found = {};
  for (const folded of page.querySelectorAll("details")) folded.open = true;
  found.width = page.documentElement.scrollWidth;
  found.title = page.title;
  found.wide = [...page.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > WIDTH + 1
    && !e.closest(".scroll") && !e.closest("svg")).slice(0, 3).map(e => e.outerHTML.slice(0, 120));
  found.unnamed = [...page.querySelectorAll("svg:not([aria-hidden])")].filter(e => !e.querySelector("title")).length;
  document.body.textContent = "FOUND" + JSON.stringify(found) + "DONE";
};
frame.src = "PAGE";
document.body.append(frame);
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The recorded pages."""
    folder = tmp_path_factory.mktemp("recorded")
    assert command.main(["--recorded", "--output", str(folder)]) == 0
    return folder


class Links(HTMLParser):
    """Every id and every link of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found["id"]} if "id" in found else set()
        self.links |= {found["href"]} if tag == "a" else set()


def test_every_link_leads_to_a_file_and_a_place_in_it(folder):
    pages = {name: Links((folder / name).read_text(encoding="utf-8")) for name in PAGES}
    for name, page in pages.items():
        assert page.links
        for link in page.links:
            path, _, place = link.partition("#")
            target = unquote(path) or name
            assert (folder / target).is_file(), (name, link)
            assert not place or place in pages[target].ids, (name, link)


def probe_of(folder, page, width):
    probe = folder / f"probe-{Path(page).stem}-{width}.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)).replace("PAGE", page), encoding="utf-8")
    return probe


def browse(probe, profile):
    """What Chromium finds on a page, and what it writes to the console."""
    switches = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"),
        *(f"--user-data-dir={profile}", "--window-size=1200,900"),
    )
    words = [CHROMIUM, *switches, probe.as_uri()]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"FOUND(\{.*\})DONE", run.stdout, re.DOTALL)
    assert found, run.stdout[-500:]
    return json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), run.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [360, 1200])
def test_a_page_in_chromium(folder, tmp_path, page, width):
    found, told = browse(probe_of(folder, page, width), tmp_path)
    assert "CONSOLE" not in told, told
    assert found["width"] <= width, found["wide"]
    assert found["unnamed"] == 0, "every picture has a name"
    assert found["title"]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_page_that_is_wrong_is_caught(tmp_path):
    wrong = '<div style="width:500px">.</div><svg></svg><script>console.error(1)</script>'
    (tmp_path / "wrong.html").write_text(f"<!doctype html><title>wrong</title>{wrong}")
    found, told = browse(probe_of(tmp_path, "wrong.html", 360), tmp_path / "profile")
    assert "CONSOLE" in told
    assert found["width"] >= 500
    assert "width:500px" in found["wide"][0]
    assert found["unnamed"] == 1
