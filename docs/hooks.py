"""What the site takes from outside of ``docs/``: the table of all settings, the README, the benchmarks, the samples."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bitflip.settings.hyperparameters import Hyperparameters  # noqa: E402

PAGES = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
PLACE = "<!-- settings -->"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def settings() -> str:
    """A Markdown table of all settings: name, default, meaning, valid values."""
    rows = ["| name | default | meaning | valid values |", "|---|---|---|---|"]
    for name, field in Hyperparameters.model_fields.items():
        value = {True: "on", False: "off"}[field.default] if isinstance(field.default, bool) else field.default
        default = "" if value is None else f"`{value}`"
        extra: Any = field.json_schema_extra
        rows.append(f"| `{name}` | {default} | {_cell(field.description or '')} | {_cell(extra['valid'])} |")
    return "\n".join(rows)


def on_files(files: Files, config: Any) -> Files:
    """Add what lies elsewhere in the repository."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for folder in ("sample-output", "vessl"):
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and path.suffix not in {".pyc", ".md"}:
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the settings, and lead links to where the files are in the site."""
    source = page.file.src_uri
    if source == "index.md":
        markdown = markdown.replace("](docs/", "](").replace("](benchmarks/README.md", "](benchmarks.md")
        markdown = markdown.replace("](sample-output/)", "](sample-output/digits_vgg_digits_1234.html)")
        markdown = markdown.replace(
            "](sample-output/ten-seeds)", "](sample-output/ten-seeds/digits_vgg_digits_seeds.csv)"
        )
    elif source == "benchmarks.md":
        markdown = markdown.replace("](../docs/", "](").replace("](../README.md", "](index.md")
    else:
        markdown = markdown.replace("](../benchmarks/README.md", "](benchmarks.md").replace(
            "](../README.md", "](index.md"
        )
        markdown = markdown.replace("](../sample-output/", "](sample-output/").replace("](../vessl/", "](vessl/")
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        markdown = markdown.replace(f"]({name})", f"]({name.lower()})")
    return markdown.replace(PLACE, settings())
