"""Documents that name files, anchors, versions and shapes keep to what is there."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from alignrun import __version__
from alignrun.launch.suggestions import alias

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", document.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = FENCED.sub("", document.read_text("utf-8"))
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), f"{document.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{document.name}: {target}"
    for name in re.findall(r"\bdocs/[a-z_]+\.md\b", text):
        assert (ROOT / name).exists(), f"{document.name}: {name}"


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["version"] == __version__
    assert {"cff-version", "message", "title", "authors", "license"} <= cited.keys()


def test_ci_calls_the_commands_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert "make test" in commands
    for command in commands:
        assert command.split()[0] == "make"
        assert command.split()[1] in targets, command


def test_public_tensor_functions_have_a_shape_legend() -> None:
    source = ROOT / "src" / "alignrun"
    files = [*(source / "objectives").glob("*.py"), *source.glob("games*.py"), *(source / "games").glob("*.py")]
    without = []
    for file in files:
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.returns is not None:
                legend = re.search(r"\[[^\]]*\]|[Ss]calar|Any shape", ast.get_docstring(node) or "")
                if re.search(r"\bTensor\b", ast.unparse(node.returns)) and legend is None:
                    without.append(f"{file.stem}.{node.name}")
    assert files
    assert not without


def test_the_arguments_of_trl_are_mapped_to_keys_that_exist_and_suggested_on_the_command_line() -> None:
    """The page's tables, the reference of keys and the suggestions name the same keys."""
    known = set(re.findall(r"^\| `([a-z_.]+)` \|", (ROOT / "docs/config.md").read_text(), re.MULTILINE))
    rows = re.findall(r"^\| `([a-z_]+)`[^|]*\| `([a-z_.]+)` \|", (ROOT / "docs/trl.md").read_text(), re.MULTILINE)
    assert len(rows) > 40
    for theirs, ours in rows:
        assert ours in known | {"seed", "tracker"}, f"docs/trl.md: {ours} is no key"
        if theirs not in ("alpha", "seed", "temperature"):  # LoRA has an alpha, too
            assert (alias(theirs) or "").split()[-1:] == [ours], theirs


def test_the_text_is_in_plain_english() -> None:
    """Words that an engineer of the field would not write, in code, tests and documents."""
    unusual = re.compile(r"\b(told|mends?|mended|beside|to be had|of no use|in a circle)\b|\bdear |_(told|beside)\b")
    words = {"text_measures.py": "beside"}  # a list of prepositions
    folders = [ROOT / name for name in ("src", "tests", "scripts", "examples")]
    code = [file for folder in folders for file in folder.rglob("*.py") if file != Path(__file__)]
    found = [
        f"{file.relative_to(ROOT)}: {match.group()}"
        for file in [*DOCUMENTS, *code]
        for match in unusual.finditer(file.read_text("utf-8"))
        if match.group() != words.get(file.name)
    ]
    assert not found


def test_the_comparison_is_the_same_in_both_places_and_explains_every_row() -> None:
    readme, page = ((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/comparison.md"))
    table = re.compile(r"^\| \| alignrun \|.*\n(?:\|.*\n)+", re.MULTILINE)
    shown, explained = table.search(readme), table.search(page)
    assert shown
    assert explained
    assert shown[0] == explained[0]
    rows = [line.split(" | ") for line in shown[0].splitlines()[2:]]
    assert len(rows) > 10
    for label, *cells in rows:
        assert len(cells) == 7, label
        assert f"**{label.removeprefix('| ')}".lower() in page.lower(), label
    ours = sum(len(list((ROOT / "conf" / folder).glob("*.yaml"))) for folder in ("experiment", "recipe"))
    assert rows[-1][1] == str(ours)
