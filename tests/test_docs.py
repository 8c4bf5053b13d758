"""What the docs say runs: the examples in docstrings, and every block of Python on a page."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "npmoe").rglob("*.py")
    if path.stem != "__main__"  # importing it would start it
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]

FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>```+|~~~+) *(?P<tag>[^\n]*)\n(?P<body>.*?)^(?P=indent)(?P=ticks) *$", re.M | re.S
)


def blocks(text):
    """(tag, line of the first line of code, code) for every fenced block of a page."""
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("body")) + 1
        code = re.sub(f"^{found['indent']}", "", found["body"], flags=re.M)
        yield found["tag"].strip(), line, code


TAGS = ("python", "python torch", "python no-run")


def run_page(text, name, torch=False):
    """Run the blocks tagged python of a page in one namespace, doctests where they are written so; how many ran.

    Blocks tagged "python torch" run only where that is asked for.
    """
    namespace, ran = {"__name__": "__page__"}, 0
    for tag, line, code in blocks(text):
        if tag.lower().startswith("py") and tag not in TAGS:  # or a block would be left out without a word
            raise ValueError(f"{name}:{line - 1}: expected the tag {' or '.join(map(repr, TAGS))}; got {tag!r}")
        if tag != "python" and not (tag == "python torch" and torch):
            continue
        ran += 1
        if code.lstrip().startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(code, {}, name, name, line - 1)
            test.globs = namespace
            told = []
            failed, _ = doctest.DocTestRunner(verbose=False).run(test, out=told.append, clear_globs=False)
            assert failed == 0, "".join(told)
        else:
            # blank lines in front, so that a traceback points at the line of the page
            exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)
    return ran


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    runner, told = doctest.DocTestRunner(), []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test, out=told.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(told)


def test_there_are_examples_to_run():
    """If the finder went blind, the tests above would pass over nothing."""
    finder = doctest.DocTestFinder()
    tests = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(tests) > 40


@pytest.mark.underflow  # readers have NumPy's own settings
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_on_pages(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a page may write files
    run_page(page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix())


@pytest.mark.underflow
@pytest.mark.parametrize("page", ["docs/verify.md"])
def test_python_on_pages_that_need_torch(page, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'npmoe[verify]'")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    assert run_page(text, page, torch=True) > run_page(text, page)


# The tests of this file's own machinery

PAGE = """
```python
a = 1
```
Words, and a block in a list:

- item

  ```python
  a += 1
  ```

```python
>>> a
2
```

```sh
exit 1
```

```python no-run
raise SystemExit("not me")
```
"""


def test_blocks_of_a_page_share_a_namespace_and_others_are_left_alone():
    assert run_page(PAGE, "page.md") == 3


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("```python\nassert a == 3\n```", AssertionError, None),
        ("```python\nnowhere\n```", NameError, "nowhere"),
        ("```python\n>>> a\n3\n```", AssertionError, r"line 26(?s:.*)Expected:\s+3\s+Got:\s+2"),
        ("~~~python\n1 / 0\n~~~", ZeroDivisionError, None),
        ("````python\n1 / 0\n````", ZeroDivisionError, None),
        (
            "```py\n1\n```",
            ValueError,
            "page.md:25: expected the tag 'python' or 'python torch' or 'python no-run'; got 'py'",
        ),
        ("```python norun\n1\n```", ValueError, "got 'python norun'"),
        ("```Python\n1\n```", ValueError, "got 'Python'"),
    ],
)
def test_a_block_that_fails_fails(code, error, message):
    with pytest.raises(error, match=message):
        run_page(PAGE + code, "page.md")


def test_a_failure_points_at_the_line_of_the_page():
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("# Title\n\n```python\na = 1\n1 / 0\n```\n", "page.md")
    last = caught.traceback[-1]
    assert (str(last.path).endswith("page.md"), last.lineno + 1) == (True, 5)
