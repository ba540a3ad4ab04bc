"""Hundreds of inputs that nobody has thought of: each works, or ends in one line that says where, and nothing else."""

import contextlib
import io
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alignrun import cli
from alignrun.data.completions import end_of_turn
from alignrun.data.loading import load_examples
from alignrun.data.prompts import PromptSet
from alignrun.errors import InputError
from alignrun.launch.build import make_encoding
from alignrun.launch.compose import compose, plain

pytestmark = pytest.mark.slow

BASES = (
    ["experiment=smoke"],
    ["experiment=smoke", "algo=ppo"],
    ["experiment=game", "algo=nash_mp"],
    ["model=llama-8b", "algo=ipo_md", "preference=judge", "preference.model=m", "preference.url=http://localhost:1"],
)


def many(examples: int) -> settings:
    """The same examples in every run."""
    return settings(
        max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )


def leaves(value: Any, path: str = "") -> list[str]:
    """The dotted keys of a configuration."""
    if isinstance(value, dict) and value:
        return [key for name, part in value.items() for key in leaves(part, f"{path}.{name}" if path else str(name))]
    return [path]


@pytest.fixture(scope="module")
def keys() -> list[tuple[list[str], str]]:
    return [(base, key) for base in BASES for key in leaves(plain(compose(base)))]


def run(*arguments: str) -> tuple[int, str]:
    """The exit code and what was said on standard error."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(list(arguments))
    return code, error.getvalue()


def is_one_line(said: str) -> bool:
    lines = said.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("alignrun: error: ") and len(lines[0]) > 30


VALUES = (
    *("null", "true", "[]", "{}", "[1,2]", "{a: 1}", "''", "'nan'", ".nan", "-.inf", "1e-400", "~", "\\$", "${x}"),
    "${oc.env:HOME}",
)
ODD = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(VALUES),
    st.text(st.characters(blacklist_categories=("Cs",)), max_size=12),
)


def test_values_of_configuration_keys(keys: list[tuple[list[str], str]]) -> None:
    refused = set()

    @many(150)
    @given(st.sampled_from(keys), ODD)
    def check(place: tuple[list[str], str], value: str) -> None:
        base, key = place
        code, said = run("config", *base, f"{key}={value}")
        assert code in (0, 2)
        if code == 2:
            assert is_one_line(said), said
            refused.add((key, value))
        else:
            assert not said

    check()
    assert len(refused) > 70


@many(60)
@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=30), min_size=1, max_size=3))
def test_anything_on_the_command_line(words: list[str]) -> None:
    if words[0] in ("ls", "plan", "config", "top", "eval") or words == ["--version"]:
        return
    code, said = run("config", *words)
    assert code in (0, 2)
    assert code == 0 or is_one_line(said), said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TURN = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant", "system", "x"]) | JSON, "content": JSON}
)
ROW = st.fixed_dictionaries(
    {},
    optional={
        "prompt": JSON | st.lists(TURN, max_size=3) | st.text(),
        "chosen": JSON | st.lists(TURN, max_size=3) | st.text(),
        "rejected": JSON | st.text(),
        "completion": JSON,
        "messages": st.lists(TURN, max_size=4),
        "label": JSON,
        "votes": JSON,
    },
)
LINE = st.one_of(
    ROW.map(lambda row: json.dumps(row).encode()),
    ROW.map(lambda row: json.dumps(row, ensure_ascii=False).encode("utf-16")),
    ROW.map(lambda row: json.dumps(row, ensure_ascii=False).encode("latin-1", "replace")),
    ROW.map(lambda row: json.dumps(row).encode()[:-1]),
    ROW.map(lambda row: b'{"prompt": "a", ' + json.dumps(row).encode()[1:]),
    st.binary(max_size=40),
    st.sampled_from(
        [b'{"prompt": "one"}', b"\xef\xbb\xbf{}", b"[" * 2000, b'{"prompt": "' + b"x" * 100_000 + b'"}', b"NaN"]
    ),
)


def test_data_files() -> None:
    base = compose(["experiment=smoke", "data=jsonl", "data.path=x.jsonl"]).data
    pairs = compose(["experiment=smoke", "algo=dpo", "preference=none", "data=jsonl", "data.path=x.jsonl"]).data
    refused = set()

    @many(200)
    @given(
        st.lists(LINE, max_size=4),
        st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n \n"]),
        st.sampled_from(["d.jsonl", "d.json", "d.jsonl.gz", "d.csv"]),
        st.sampled_from([base, pairs]),
    )
    @example([b'{"prompt": "one"}'], b"\r\n", "d.jsonl", base)
    def check(lines: list[bytes], end: bytes, name: str, config: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(end.join(lines))
            named = type(config)(
                **{field: getattr(config, field) for field in config.__dataclass_fields__} | {"path": str(path)}
            )
            try:
                load_examples(named)
            except InputError as error:
                said = str(error)
                assert len(said.splitlines()) == 1, said
                assert name.split(".")[0] in said, said
                refused.add((tuple(lines), end, name))

    check()
    assert len(refused) > 100


PIECES = (
    *("{{ messages }}", "{% for m in messages %}", "{% endfor %}", "{{ m['content'] }}", "{{ m.role", "}}", "{% if"),
    *("{{ messages[7].content }}", "{{ 1 / 0 }}", "{{ raise_exception('no') }}", "<|im_end|>", "text", "{% endif %}"),
    *("{{ ''.__class__.__mro__ }}", "{{ x.y.z }}", "{% set a = messages %}", "{{ 'a' * 1000 }}"),
)


@many(100)
@given(st.lists(st.sampled_from(PIECES), max_size=6))
def test_chat_templates(parts: list[str]) -> None:
    config = compose(["experiment=smoke"])
    rows = load_examples(config.data).heldout[:2]
    made = make_encoding(replace(config, model=replace(config.model, chat_template="".join(parts) or None)))
    said = ""
    try:
        PromptSet.build(rows, made)
        end_of_turn(made.tokenizer)
    except InputError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1, said


JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole small model as `model=path` takes it."""
    folder = tmp_path_factory.mktemp("model")
    assert run("experiment=smoke", "adapter=none", "train.steps=1", f"run.dir={folder / 'run'}")[0] == 0
    return folder / "run" / "adapter"


def damage(folder: Path, draw: Any) -> str:
    """Spoil one file of a model, and say how."""
    file = folder / draw(st.sampled_from([*JSON_FILES, "model.safetensors"]))
    content = file.read_bytes()
    kinds = ["missing", "empty", "cut short", "changed byte", "noise"]
    kind = draw(st.sampled_from([*kinds, "other value", "other value"] if file.suffix == ".json" else kinds))
    if kind == "missing":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "cut short":
        file.write_bytes(content[: draw(st.integers(0, len(content) - 1))])
    elif kind == "changed byte":
        place = draw(st.integers(0, min(len(content), 400) - 1))  # the header of weights, the start of JSON
        file.write_bytes(content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :])
    elif kind == "noise":
        file.write_bytes(draw(st.binary(max_size=60)))
    else:
        values = json.loads(content)
        name = draw(st.sampled_from(sorted(values)))
        values[name] = draw(st.sampled_from([None, -1, 0, 10**9, 1.5, "x", [], {}, True, [1, "a"]]))
        file.write_text(json.dumps(values))
        kind = f"{name}={values[name]}"
    return f"{file.name} {kind}"


def test_model_folders(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignrun.launch.train.write_report", lambda *_: False)
    refused = set()

    @many(60)
    @given(st.data())
    def spoil(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "model"
            shutil.copytree(model_folder, folder)
            how = damage(folder, data.draw)
            arguments = ["experiment=smoke", "model=path", f"model.path={folder}", "model.chat_template=null"]
            code, said = run(*arguments, "train.steps=1", "data.eval_size=2", f"run.dir={Path(name) / 'run'}")
            assert code in (0, 2), (how, said)
            if code:
                assert is_one_line(said), (how, said)
                assert not (Path(name) / "run").exists()
                refused.add(how)

    spoil()
    assert len(refused) >= 25, "so many distinct ones must have been refused"
