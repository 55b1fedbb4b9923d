"""What `make docs` adds to MkDocs: pages from outside docs/, the gallery, links, and formulas.

All pages are plain Markdown that also reads well on GitHub. Links between them are those of the
repository; `on_page_markdown` turns them into links of the site.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
import subprocess
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from pymdownx.slugs import slugify

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
} | {f"notebooks/{path.stem}.py": f"notebooks/{path.stem}.md" for path in NOTEBOOKS}
"""Pages that are files outside docs/, and their names in the site."""
EXECUTED = ROOT / "build/notebooks"
"""Where `make notebooks` leaves the executed notebooks, whose outputs the site shows."""
LINK = re.compile(r"(?<=\]\()(?!#|[a-z]+:)([^)\s#]+)(#[^)\s]*)?(?=\))")
IMAGE = re.compile(r"!\[([^\]]+)\]\((?:docs/)?(results/[^)]+)\)")
HEADING = re.compile(r"^#+ (.+)$")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LOADED = re.compile(r"""<(?:script|img|iframe|source|link)\s[^>]*(?:src|href)="?(https?:[^\s">]+)""")
DOLLARS = re.compile(r"^\$\$(\n.*?\n)\$\$$", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
KATEX = ROOT / "build/katex/node_modules/katex"
"""Where `make docs` installs KaTeX."""
RENDER = """
const katex = require(process.argv[1]), formulas = JSON.parse(require("fs").readFileSync(0));
const options = {displayMode: true, strict: "error"};
console.log(JSON.stringify(formulas.map(formula => katex.renderToString(formula, options))));
"""
slug = slugify(case="lower")


def on_config(config: Any) -> Any:
    """Give headings the anchors that GitHub gives them, and draw the formulas of ```math fences."""
    texts = [path.read_text(encoding="utf-8") for path in Path(config.docs_dir).rglob("*.md")]
    drawn = draw(texts + [notebook(path, config)[0] for path in NOTEBOOKS])

    def formula(source: str, *_: Any, **__: Any) -> str:
        return f'<div class="math" data-search-exclude>{drawn[source.strip()]}</div>'

    config.mdx_configs["pymdownx.superfences"] = {
        "custom_fences": [{"name": "math", "class": "math", "format": formula}]
    }
    config.mdx_configs["toc"]["slugify"] = slug
    config.extra_css.append("katex/katex.min.css")
    return config


def draw(pages: list[str]) -> dict[str, str]:
    """Draw the formulas of pages with KaTeX, as HTML that needs no script.

    Raises:
        PluginError: if KaTeX is not installed, or does not understand a formula.
    """
    formulas = [formula for page in pages for formula in FORMULA.findall(page)]
    if not KATEX.exists():
        raise PluginError("KaTeX is not in build/katex: run make docs, which installs it with npm")
    node = ["node", "-e", RENDER, str(KATEX)]
    run = subprocess.run(node, input=json.dumps(formulas), capture_output=True, encoding="utf-8")
    if run.returncode:
        raise PluginError("a formula of docs/ is wrong: " + re.findall(r"ParseError.*|$", run.stderr)[0])
    return dict(zip((formula.strip() for formula in formulas), json.loads(run.stdout), strict=True))


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/, and the style sheet and fonts of KaTeX."""
    for path in (KATEX / "LICENSE", KATEX / "dist/katex.min.css", *KATEX.glob("dist/fonts/*.woff2")):
        name = path.relative_to(KATEX).as_posix().removeprefix("dist/")
        files.append(File.generated(config, f"katex/{name}", abs_src_path=str(path)))
    pages = {page: (ROOT / path).read_text(encoding="utf-8") for path, page in ELSEWHERE.items()}
    pages["index.md"] = "---\nhide: [navigation]\n---\n\n" + pages["index.md"]
    pages["gallery.md"] = gallery(Path(config.docs_dir))
    for path in NOTEBOOKS:
        pages[f"notebooks/{path.stem}.md"], pictures = notebook(path, config)
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for name, page in pages.items():
        files.append(File.generated(config, name, content=page))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links of the repository into links of the site, or to the file in the public repository."""
    here = page.file.src_uri
    source = next((path for path, name in ELSEWHERE.items() if name == here), f"docs/{here}")
    repository = config.extra["social"][0]["link"]

    def target(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        name = ELSEWHERE.get(path) or path.removeprefix("docs/")
        if path in ELSEWHERE or (path.startswith("docs/") and files.get_file_from_path(name)):
            return posixpath.relpath(name, posixpath.dirname(here) or ".") + (link[2] or "")
        if (ROOT / path).exists():
            return f"{repository}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}{link[2] or ''}"
        return link[0]

    return LINK.sub(target, markdown)


def on_post_build(config: Any) -> None:
    """Refuse a site that loads anything from elsewhere."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        if found := LOADED.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path} loads {found[1]}: the site must work offline")


def gallery(docs: Path) -> str:
    """Collect the pictures of docs/results from the pages that show them, under those pages' titles.

    Raises:
        PluginError: if no page shows one of them.
    """
    parts = [
        "---\nhide: [navigation, toc]\n---\n\n# Gallery",
        "Every picture of [the results](results.md): samples are not selected unless the page says so. Each caption "
        "leads to the place with its command, budget and scores.",
    ]
    shown: set[str] = set()
    for page in sorted(docs.glob("*.md"), key=lambda page: (page.name != "families.md", page)):
        title, heading, figures = "", "", []
        # A comment in a fenced block is not a heading.
        for line in FENCE.sub("", page.read_text(encoding="utf-8")).splitlines():
            if match := HEADING.match(line):
                heading, title = match[1], title or match[1]
            for caption, picture in IMAGE.findall(line):
                if picture not in shown:
                    shown.add(picture)
                    figures.append(figure(picture, caption, f"{page.name}#{slug(heading, '-')}"))
        if figures:
            parts += [f"## {title}", '<div class="gallery" markdown>', *figures, "</div>"]
    there = {path.relative_to(docs).as_posix() for kind in ("png", "jpg") for path in docs.glob(f"results/**/*.{kind}")}
    if missing := sorted(there - shown):
        raise PluginError(f"no page of docs/ shows these pictures: {', '.join(missing)}")
    return "\n\n".join(parts)


def figure(picture: str, caption: str, where: str) -> str:
    """Write a picture of the gallery, with a caption that is a link."""
    label = caption[0].upper() + caption[1:]
    return (
        f"<figure markdown>\n![{caption}]({picture}){{ loading=lazy }}\n\n"
        f"<figcaption markdown>[{label}]({where})</figcaption>\n</figure>"
    )


def notebook(text: Path, config: Any) -> tuple[str, dict[str, bytes]]:
    """Write a notebook as Markdown, with the outputs of its executed copy if that is up to date.

    Returns:
        The page, and its pictures by name.
    """
    cells = jupytext.read(text).cells
    path = EXECUTED / f"{text.stem}.ipynb"
    done = nbformat.read(path, as_version=4).cells if path.exists() else []
    outputs = {cell.source: cell.outputs for cell in done if cell.cell_type == "code"}
    budget = [cell.source for cell in done if "injected-parameters" in cell.metadata.get("tags", [])]
    if not all(cell.source in outputs for cell in cells if cell.cell_type == "code"):
        outputs, budget = {}, []
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in cells:
        if cell.cell_type == "markdown":
            parts.append(DOLLARS.sub(r"```math\1```", cell.source))
            continue
        sources = [cell.source, *budget] if "parameters" in cell.metadata.get("tags", []) else [cell.source]
        parts += [f"```python\n{source}\n```" for source in sources]
        for output in outputs.get(cell.source, []):
            if picture := output.get("data", {}).get("image/png"):
                name = f"{text.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode(picture)
                parts.append(f"![output]({name})")
            elif said := output.get("text", "").strip():
                parts.append(f'```text title="output"\n{said}\n```')
    address = f"{config.extra['social'][0]['link']}/blob/main/notebooks/{text.name}"
    parts.insert(
        1,
        f"*This page is the notebook [notebooks/{text.name}]({address}). `make notebooks` runs it with small budgets.*",
    )
    return "\n\n".join(parts), pictures
