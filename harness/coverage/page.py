"""The page that gcovr makes: each file with its lines, and how often each was executed."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree

from harness.coverage.report import Counts
from harness.errors import MachineryError
from harness.host.process import run

_TIMEOUT_S = 600.0


def check_page() -> None:
    """Check that gcovr is installed.

    :raises MachineryError: it is not.
    """
    if importlib.util.find_spec("gcovr") is None:
        raise MachineryError("--html needs gcovr; install it with: pip install 'hugepfn[coverage]'")


def write_page(counts: Counts, files: Iterable[str], export: Callable[[Path], None], folder: Path) -> None:
    """Write ``index.html`` and a page for each file.

    :param files: those that get a page.
    :param export: writes the source of these files into a folder.
    :raises MachineryError: gcovr failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hugepfn-coverage-") as scratch:
        source, lines = Path(scratch) / "source", Path(scratch) / "lines.xml"
        source.mkdir()
        export(source)
        lines.write_bytes(_cobertura(counts, [file for file in files if file in counts], source))
        argv = [sys.executable, "-m", "gcovr", "--root", str(source), "--cobertura-add-tracefile", str(lines)]
        run([*argv, "--html-details", folder.resolve() / "index.html"], timeout_s=_TIMEOUT_S, cwd=source)


def _cobertura(counts: Counts, files: Iterable[str], source: Path) -> bytes:
    """Cobertura's XML, which gcovr reads. Its own JSON differs from version to version."""
    top = ElementTree.Element("coverage")
    ElementTree.SubElement(ElementTree.SubElement(top, "sources"), "source").text = str(source)
    package = ElementTree.SubElement(ElementTree.SubElement(top, "packages"), "package", name="linux")
    classes = ElementTree.SubElement(package, "classes")
    for file in files:
        one = ElementTree.SubElement(classes, "class", name=file, filename=file)
        ElementTree.SubElement(one, "methods")
        lines = ElementTree.SubElement(one, "lines")
        for number, count in sorted(counts[file].items()):
            ElementTree.SubElement(lines, "line", number=str(number), hits=str(count), branch="false")
    return ElementTree.tostring(top)
