"""The build of a release: links that work on PyPI, and the addresses of the project."""

import re
import tomllib
from pathlib import PurePosixPath

import pytest

from tools.release import absolute, copy_sources

SITE = "https://example.org/anna/memory"


@pytest.mark.parametrize(
    ("link", "found"),
    [
        ("[a](mlx_deltamem/CHAT.md#the-demo)", f"[a]({SITE}/blob/main/mlx_deltamem/CHAT.md#the-demo)"),
        ("[a](../adapters/small)", f"[a]({SITE}/tree/main/adapters/small)"),
        ("[a](../adapters/small#use)", f"[a]({SITE}/tree/main/adapters/small#use)"),
        ("![a](.github/a.svg)", f"![a]({SITE}/raw/main/.github/a.svg)"),
        ("[a](#here)", "[a](#here)"),
        ("[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)"),
        ("```\n[a](b.md)\n```", "```\n[a](b.md)\n```"),
    ],
)
def test_links_become_absolute(link, found):
    place = PurePosixPath("mlx_deltamem/HOW.md" if "../" in link else "README.md")
    assert absolute(f"Text.\n\n{link}\n", place, SITE, "main") == f"Text.\n\n{found}\n"


def test_a_release_has_absolute_links_and_addresses(tmp_path):
    copy_sources(tmp_path, SITE, "main")
    for page in (tmp_path / "README.md", *(tmp_path / "mlx_deltamem").glob("*.md")):
        prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        links = re.findall(r"\]\(([^)\s]+)\)", prose)
        assert all(link.startswith(("https://", "http://127.0.0.1", "#")) for link in links), page
    assert f"{SITE}/blob/main/mlx_deltamem/CHAT.md" in (tmp_path / "README.md").read_text(encoding="utf-8")
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"]["Repository"] == SITE
    assert project["urls"]["Issues"] == f"{SITE}/issues"
    assert (tmp_path / "mlx_deltamem" / "demo" / "adapter" / "delta_mem_config.json").is_file()
