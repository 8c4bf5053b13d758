"""The picture of imports in docs/architecture.md, held against every import statement: they run one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import npmoe

PACKAGE = Path(__file__).parent.parent / "npmoe"
FILES = sorted(PACKAGE.rglob("*.py"))

#: What each room of npmoe may import besides itself. "" is the package's own front, `import npmoe`; "front" are modules
#: that only give what stands elsewhere the name by which it is known.
ROOMS = {
    "calculus": set(),
    "files": set(),
    "news": set(),
    "model": {"calculus", "files"},
    "geometry": {"calculus"},
    "probe": {"calculus", "model", "geometry"},
    "data": {"calculus"},
    "ledger": {"calculus", "files"},
    "sweep": {"files", "news"},
    "report": {"calculus", "files", "ledger"},
    "reproduce": {"", "calculus", "files", "model", "geometry", "probe", "data", "ledger", "sweep", "report", "news"},
    "convert": {"calculus", "model"},
    "verify": {"calculus", "model", "convert"},
    "testing": {"verify"},
    "battery": {"", "calculus", "files", "model", "convert", "verify", "report"},
    "checkpoint": {"", "calculus", "files", "model", "convert", "probe"},
    "language": {"calculus", "files", "model", "data", "probe", "report"},
    "front": {"convert", "battery"},
    "__main__": {""},
    "": {"model", "probe"},
}
FRONTS = {"verify/__main__.py", "verify/golden.py", "verify/matching.py", "verify/released.py"}

#: What a room may import from other people, at the top of a file; then, only inside functions.
CORE = {"numpy", "scipy"}
AT_THE_TOP = {
    "calculus": {*CORE, "threadpoolctl"},
    "sweep": {"numpy", "threadpoolctl", "tqdm"},
    "report": {"numpy", "jinja2"},
    "reproduce": {*CORE, "tqdm", "threadpoolctl"},
    "language": {*CORE, "tqdm"},
    "battery": {*CORE, "tqdm"},
}
INSIDE = {
    "sweep": {"distributed"},
    "data": {"tokenizers"},
    "verify": {"torch", "jax"},
    "battery": {"torch", "jax", "autograd", "mpmath", "transformers"},
    "checkpoint": {"tokenizers"},
}


def module_of(path):
    """("npmoe", "model", "moe") of npmoe/model/moe.py; a package is its own folder."""
    parts = ("npmoe", *path.relative_to(PACKAGE).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def room_of(module):
    name = "/".join(module[1:])
    return "front" if f"{name}.py" in FRONTS else module[1] if len(module) > 1 else ""


def imports(source, module, is_package):
    """(dotted module that is imported, whether inside a function) for every import statement, at any depth."""

    def walk(node, inside):
        if isinstance(node, ast.Import):
            yield from ((tuple(alias.name.split(".")), inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = module if is_package else module[:-1]
            base = here[: len(here) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            if base == ("npmoe",):  # `from npmoe import geometry` names a room; `from npmoe import MoE` the front
                for alias in node.names:
                    yield (("npmoe", alias.name) if alias.name in ROOMS else base), inside
            else:
                yield base, inside
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return list(walk(ast.parse(source), False))


def faults(source, module, is_package=False):
    """Imports of one file that the picture does not allow, in words."""
    room = room_of(module)
    found = []
    for name, inside in imports(source, module, is_package):
        if name[0] == "npmoe":
            target = room_of(name)
            if target != room and target not in ROOMS[room]:
                found.append(f"{room or 'npmoe'} imports {target or 'npmoe'}")
        elif name[0] not in sys.stdlib_module_names:
            allowed = AT_THE_TOP.get(room, CORE) | (INSIDE.get(room, set()) if inside else set())
            if name[0] not in allowed:
                found.append(f"{room or 'npmoe'} imports {name[0]} {'inside a function' if inside else 'at the top'}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: ".".join(module_of(path)))
def test_imports_run_one_way(path):
    module = module_of(path)
    assert room_of(module) in ROOMS, "a new room: put it into the picture, and into this table"
    assert faults(path.read_text(encoding="utf-8"), module, path.name == "__init__.py") == []


def test_the_picture_has_no_way_round():
    """However far one goes along it, no room comes back to itself."""

    def reach(room):
        below = ROOMS[room] - {room}
        return below.union(*map(reach, below))

    for room in ROOMS:
        assert room not in reach(room), room
    for room in ("model", "geometry"):
        assert not {"model", "geometry"} <= reach(room) | {room}
    for room in ("ledger", "sweep", "report", "data"):
        assert not reach(room) & {"reproduce", "model", "probe"}
    knows_battery = {room for room in ROOMS if "battery" in reach(room)}
    assert knows_battery == {"front"}, "nothing below the battery knows it"


def named(source, module, is_package, known):
    """The modules that a file names in its imports: of ``from a import b`` a.b, or a, where b is a name in it."""
    here = module if is_package else module[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            yield from ((*base, alias.name) if (*base, alias.name) in known else base for alias in node.names)


def graph(sources):
    """{module: modules of npmoe that it imports}, of {module: (source, whether it is a package)}."""
    return {
        module: {name for name in named(source, module, package, sources) if name in sources and name != module}
        for module, (source, package) in sources.items()
    }


def circle(imported):
    """Modules that import one another round in a circle, or nothing."""
    done, path = set(), []

    def walk(module):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        path.append(module)
        for other in sorted(imported[module]):
            if found := walk(other):
                return found
        path.pop()
        done.add(module)
        return []

    return next((found for module in imported if (found := walk(module))), [])


def test_no_files_import_one_another_in_a_circle():
    """Also inside functions and under TYPE_CHECKING. The package around a module is passed through, not imported."""
    sources = {module_of(path): (path.read_text(encoding="utf-8"), path.stem == "__init__") for path in FILES}
    assert circle(graph(sources)) == []
    assert len(sources) > 100


@pytest.mark.parametrize("late", ["import npmoe.a", "def f():\n    from npmoe import a", "from npmoe.a import x"])
def test_a_planted_circle_is_found(late):
    sources = {
        ("npmoe",): ("", True),
        ("npmoe", "a"): ("from npmoe.b import y", False),
        ("npmoe", "b"): ("if False:\n    import npmoe.c", False),
        ("npmoe", "c"): (late, False),
    }
    assert len(circle(graph(sources))) == 3
    assert circle(graph({**sources, ("npmoe", "c"): ("import numpy", False)})) == []


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("model/moe", "import npmoe.geometry.pca as pca", "model imports geometry"),
        ("model/moe", "from npmoe.geometry import pca", "model imports geometry"),
        ("model/moe", "from npmoe import geometry", "model imports geometry"),
        ("model/moe", "from ..geometry.pca import n_eff", "model imports geometry"),
        ("model/moe", "from .. import geometry", "model imports geometry"),
        ("model/moe", "def f():\n    from npmoe.geometry import pca", "model imports geometry"),
        (
            "model/moe",
            "if True:\n    try:\n        import npmoe.probe\n    except ImportError: pass",
            "model imports probe",
        ),
        ("model/moe", "import npmoe", "model imports npmoe"),
        ("geometry/pca", "from npmoe.model import moe", "geometry imports model"),
        ("calculus/tree", "from npmoe.model import moe", "calculus imports model"),
        ("probe/site", "from npmoe.ledger import judge", "probe imports ledger"),
        ("convert/layouts", "from npmoe.verify.judge import Part", "convert imports verify"),
        ("verify/compare", "def f():\n    from npmoe.battery import cases", "verify imports battery"),
        ("verify/compare", "from npmoe.report import page", "verify imports report"),
        ("reproduce/run", "import npmoe.battery.cases", "reproduce imports battery"),
        ("files", "from npmoe.calculus import check", "files imports calculus"),
        ("calculus/products", "import npmoe.files", "calculus imports files"),
        ("ledger", "from npmoe.reproduce.soft_clustering import config", "ledger imports reproduce"),
        ("sweep", "from npmoe.model.train import fit", "sweep imports model"),
        ("report/page", "from npmoe.probe.site import site", "report imports probe"),
        ("data/synthetic", "from npmoe.model.moe import MoE", "data imports model"),
        ("model/moe", "import matplotlib.pyplot", "model imports matplotlib at the top"),
        ("report/marks", "import matplotlib", "report imports matplotlib at the top"),
        ("report/marks", "class A:\n    import matplotlib", "report imports matplotlib at the top"),
        ("report/marks", "def draw():\n    import matplotlib", "report imports matplotlib inside a function"),
        ("reproduce/figures", "def f():\n    import matplotlib", "reproduce imports matplotlib inside a function"),
        ("probe/site", "import torch", "probe imports torch at the top"),
        ("probe/site", "from tqdm import tqdm", "probe imports tqdm at the top"),
    ],
)
def test_a_planted_import_is_caught(file, source, fault):
    assert faults(source, ("npmoe", *file.split("/"))) == [fault]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("model/moe", "import math, numpy as np\nfrom scipy.special import ndtr\nfrom npmoe.calculus import check"),
        ("model/moe", "from . import adam\nfrom .expert import GeluExpert\nfrom ..calculus import tree"),
        ("probe/site", "from npmoe.model.moe import MoE\nfrom npmoe.geometry import pca"),
        ("sweep/executors", "def client():\n    from distributed import Client"),
        ("reproduce/sc1", "import npmoe\nfrom npmoe import site\nfrom npmoe.report import write_report"),
    ],
)
def test_what_the_picture_allows_is_no_fault(file, source):
    assert faults(source, ("npmoe", *file.split("/"))) == []


def loaded(code):
    """Names of the modules that a fresh Python has after running a piece of code."""
    run = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(run, check=True, capture_output=True, text=True, timeout=120).stdout.split())


def test_neither_matplotlib_nor_a_framework_is_loaded_by_import_npmoe():
    modules = loaded("import npmoe")
    assert "npmoe.model.moe" in modules
    assert not modules & {"matplotlib", "jinja2", "tqdm", "torch", "jax", "autograd", "mpmath", "distributed", "dask"}


def test_nor_by_all_of_the_package_together():
    names = [".".join(module_of(path)) for path in FILES if path.stem != "__main__"]
    modules = loaded("\n".join(f"import {name}" for name in names))
    assert set(names) <= modules
    assert not modules & {"matplotlib", "torch", "jax", "autograd", "mpmath", "distributed", "dask", "transformers"}


def test_some_rooms_are_loaded_when_they_are_first_named():
    before = loaded("import npmoe")
    assert not {"npmoe.checkpoint", "npmoe.verify"} & before
    assert "npmoe.checkpoint.opened" in loaded("import npmoe; npmoe.checkpoint.open")
    assert "npmoe.verify" in loaded("import npmoe; npmoe.verify.compare")
    with pytest.raises(AttributeError, match="module 'npmoe' has no attribute 'chekpoint'"):
        npmoe.chekpoint  # noqa: B018
