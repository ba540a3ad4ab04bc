"""The judge's settings: what is refused, and that they survive their file."""

import json
from pathlib import Path

import pytest

from alignrun.errors import InputError
from alignrun.launch.compose import compose, dump, load
from alignrun.preferences.judge.config import AnswersConfig, JudgeConfig


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["preference.url=???", "preference.model=???"], "preference.model, preference.url must be given"),
        (["preference.url=localhost:8000/v1"], "preference.url must be http(s)://HOST"),
        (["preference.url=ftp://h"], "preference.url must be"),
        (["preference.url=http:///v1"], "preference.url must be"),
        (["preference.url=http://h:99999999/v1"], "preference.url must be"),
        (["preference.url='http://h/v1?key=x'"], "preference.url must be"),
        (["preference.url='http://user:sk-secret@h/v1'"], "belongs in $OPENAI_API_KEY"),
        (["preference.model=''"], "preference.model is missing"),
        (["preference.template='{first} {second}'"], "preference.template must hold {prompt} once, not 0 times"),
        (["preference.template='{prompt} {first} {first} {second}'"], "must hold {first} once, not 2 times"),
        (["preference.answers.second=1"], "preference.answers must be different words"),
        (["preference.answers.first=' '"], "preference.answers must be different words"),
        (["preference.max_tokens=0"], "preference.max_tokens must be at least 1"),
        (["preference.timeout_seconds=0"], "preference.timeout_seconds must be positive"),
        (["preference.timeout_seconds=.nan"], "preference.timeout_seconds"),
        (["preference.retries=-1"], "preference.retries must not be negative"),
        (["preference.backoff=-1"], "preference.backoff must not be negative"),
        (["preference.concurrency=0"], "preference.concurrency must be at least 1"),
        (["preference.max_unclear=1.5"], "preference.max_unclear must lie in [0, 1], not 1.5"),
        (["preference.key_variable=''"], "preference.key_variable"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(overrides: list[str], expected: str) -> None:
    given = ["preference.url=http://h/v1", "preference.model=m"]
    with pytest.raises(InputError) as error:
        compose(["experiment=smoke", "preference=judge", *given, *overrides])
    assert expected in str(error.value)
    assert "sk-secret" not in str(error.value)


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    for cache in ("true", "false", "answers.sqlite"):
        config = compose(
            [
                "experiment=smoke",
                "preference=judge",
                "preference.url=https://api.example.com/v1/",
                "preference.model=m",
                "preference.answers.first=A",
                "preference.answers.second=B",
                "preference.answers.tie=null",
                "+preference.extra.chat_template_kwargs.enable_thinking=false",
                f"preference.cache={cache}",
                "preference.template='{prompt}\n{first}: {second}'",
            ]
        )
        assert isinstance(config.preference, JudgeConfig)
        assert config.preference.answers == AnswersConfig("A", "B", None)
        assert config.preference.extra == {"chat_template_kwargs": {"enable_thinking": False}}
        assert config.preference.cache == json.loads(cache if cache in ("true", "false") else f'"{cache}"')
        file = tmp_path / "config.yaml"
        file.write_text(dump(config))
        assert load(file) == config
