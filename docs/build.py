"""Builds the site into site/: the pages of this folder, the notebooks with their outputs, and the API of `src/dshmp`.

    python docs/build.py                warnings are errors, links that lead nowhere among them
    python docs/build.py --notebooks    runs the notebooks anew and keeps their outputs; no site

What zensical reads is put together in build/site/docs: the pages as they are, each notebook as Markdown, and a page of
the API for every module or package of `dshmp`, found by looking, so that a new one needs no entry here.
"""

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS, PACKAGE, STAGE, SITE = ROOT / "docs", ROOT / "src" / "dshmp", ROOT / "build" / "site" / "docs", ROOT / "site"
NOTEBOOKS = DOCS / "notebooks"
NAV: list[dict[str, Any]] = [
    {"Start": "index.md"},
    {"Use": [{"Use": "use.md"}, {"Web page": "serve.md"}, {"Notebook: segment a video": "notebooks/segment.md"}]},
    {"Streams": "stream.md"},
    {"Many videos, many machines": "fleet.md"},
    {"Formats of other tools": "formats.md"},
    {"Data sets and scoring": "data.md"},
    {"Train": [{"Train": "train.md"}, {"Notebook: ten clips of your own": "notebooks/train.md"}]},
    {"The paper": "paper.md"},
    {
        "Results": [
            {"Results": "results.md"},
            {"Ablations": "ablation/README.md"},
            {"Ablations of the first model": "ablation/first_model.md"},
        ]
    },
    {"Synthetic data": "synthetic.md"},
    {"Extend": "extend.md"},
]
LEFT_OUT = {"__main__", "cli", "recipes", "assets"}
"""Of the package, what has no page: the command is described under Use."""
ANSI = re.compile(r"\x1b\[[0-9;]*m")


# --- The API


def public() -> dict[str, str]:
    """The names that `dshmp` gives -> the modules that they are from."""
    import dshmp

    return {name: getattr(dshmp, name).__module__ for name in sorted(dshmp.__all__)}


def modules() -> dict[str, list[str]]:
    """Top-level module or package -> the modules in it that have a docstring or a public name."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in LEFT_OUT or parts == ("__init__",) or not path.stat().st_size:
            continue
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found.setdefault(parts[0], []).append(".".join(("dshmp", *parts)))
    return found


def write_api(folder: Path) -> list[Any]:
    """The pages of the API; returns their part of the navigation."""
    folder.mkdir()
    lines = [
        "# API",
        "",
        "The names that `import dshmp` gives. Everything else is grouped by module, beside this page.",
        "",
    ]
    for name, module in public().items():
        lines += [f"::: {module}.{name}", ""]
    (folder / "index.md").write_text("\n".join(lines))
    nav: list[Any] = [{"dshmp": "api/index.md"}]
    for top, names in modules().items():
        page = [f"# dshmp.{top}", ""]
        for name in names:
            page += [
                f"::: {name}",
                "    options:",
                f"      show_root_heading: {str(name != f'dshmp.{top}').lower()}",
                "",
            ]
        (folder / f"{top}.md").write_text("\n".join(page))
        nav.append({f"dshmp.{top}": f"api/{top}.md"})
    return nav


# --- The notebooks


def run_notebook(path: Path, folder: Path) -> Any:
    """The notebook after a run in `folder`, with `dshmp` of this environment at hand."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return notebook


def keep_outputs(path: Path) -> None:
    """Run a notebook and write it with its outputs, without what went to stderr and without colours."""
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        notebook = run_notebook(path, Path(folder))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:
                    output["text"] = ANSI.sub("", output["text"])
    nbformat.write(notebook, path)


def notebook_page(path: Path, folder: Path) -> None:
    """A notebook with the outputs that it holds as Markdown, its pictures beside it."""
    lines: list[str] = []
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        kind = "sh" if source.startswith("!") else "python"
        lines += [f"```{kind}", source.removeprefix("!"), "```", ""]
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{path.stem}-{number}.png"
                (folder / picture).write_bytes(base64.b64decode("".join(data["image/png"])))
                lines += [f"![Output of the cell above]({picture})", ""]
            elif "text/html" in data:
                lines += ["", "".join(data["text/html"]).replace("\n", " "), ""]
            elif text := "".join(output.get("text") or data.get("text/plain", "")).rstrip():
                lines += ["```text", text, "```", ""]
    lines += [f"The notebook: [{path.name}]({path.name})."]
    (folder / f"{path.stem}.md").write_text("\n".join(lines) + "\n")


# --- The site


def write_config(path: Path, nav: list[Any]) -> None:
    options = {
        "show_source": False,
        "show_root_heading": True,
        "show_root_full_path": True,
        "heading_level": 2,
        "members_order": "source",
        "docstring_style": "google",
        "separate_signature": True,
        "show_signature_annotations": True,
        "docstring_options": {
            "warn_unknown_params": False,
            "warn_missing_types": False,
            "returns_multiple_items": False,
        },
    }
    config = {
        "site_name": "dshmp",
        "docs_dir": STAGE.name,
        "site_dir": "html",
        "use_directory_urls": False,
        "theme": {
            "name": "material",
            "font": False,
            "features": ["navigation.top", "content.code.copy", "toc.follow"],
            "palette": [
                {"media": "(prefers-color-scheme: light)", "scheme": "default"},
                {"media": "(prefers-color-scheme: dark)", "scheme": "slate"},
            ],
        },
        "extra_css": ["style.css"],
        "markdown_extensions": [
            "attr_list",
            "tables",
            "md_in_html",
            {"toc": {"permalink": True}},
            {"pymdownx.highlight": {"anchor_linenums": True}},
            "pymdownx.superfences",
        ],
        "plugins": [
            "search",
            {"mkdocstrings": {"handlers": {"python": {"paths": [str(ROOT / "src")], "options": options}}}},
        ],
        "nav": nav,
    }
    path.write_text(yaml.safe_dump(config, sort_keys=False))


class _Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value and tag in ("a", "img"):
                self.links.append(value)


def broken_links(site: Path) -> list[str]:
    """Links within the site to a file or an anchor that is not there."""
    pages = {path: _Page(path.read_text()) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file():
                broken.append(f"{path.relative_to(site)}: {link} leads nowhere")
            elif anchor and anchor != "__top" and target in pages and anchor not in pages[target].anchors:
                broken.append(f"{path.relative_to(site)}: {link} names no heading there")
    return broken


def build() -> None:
    shutil.rmtree(STAGE.parent, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    STAGE.parent.mkdir(parents=True)
    shutil.copytree(DOCS, STAGE, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook_page(path, STAGE / "notebooks")
    config = STAGE.parent / "mkdocs.yml"
    write_config(config, [*NAV, {"API": write_api(STAGE / "api")}])
    zensical = Path(sys.executable).parent / "zensical"
    command = [str(zensical), "build", "--strict", "--clean", "--config-file", str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    told = ANSI.sub("", done.stdout + done.stderr)
    print(told.strip())
    if done.returncode or re.search(r"warning|error|griffe:", told, re.IGNORECASE):
        sys.exit("the site has warnings, which are errors here")
    (STAGE.parent / "html").rename(SITE)
    if broken := broken_links(SITE):
        sys.exit("\n".join(broken))
    print(f"wrote {SITE.relative_to(ROOT)}/index.html")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the site of the documentation.")
    parser.add_argument("--notebooks", action="store_true", help="run the notebooks and keep their outputs; no site")
    if parser.parse_args().notebooks:
        for each in sorted(NOTEBOOKS.glob("*.ipynb")):
            keep_outputs(each)
    else:
        build()
