"""Settings: defaults, sources, and the report of invalid values."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from service.errors import SettingsError
from service.settings import Settings, describe_settings, load_settings

MIB = 1024 * 1024


def test_defaults_suffice_to_start() -> None:
    """Without any setting the service starts, with the real API, without a key, and with its limits."""
    assert load_settings().model_dump() == {
        **load_settings().model_dump(),
        "autoenhance_api_key": None,
        "autoenhance_api_base": "https://api.autoenhance.ai/v3",
        "port": 8000,
        "log_format": "json",
        "images_in_flight": 5,
        "max_images_in_flight": 32,
        "read_ahead_bytes": 8 * MIB,
        "read_ahead_total_bytes": 64 * MIB,
        "image_attempts": 3,
        "image_timeout_seconds": 60,
        "first_byte_seconds": 50,
        "give_up_after": 10,
        "client_stall_seconds": 60,
        "max_images_per_order": 2000,
        "allow_private_upstream": False,
        "upstream_allowed_hosts": (),
    }


def test_first_byte_timeout_is_shorter_than_that_of_proxies() -> None:
    """The client gets the service's timeout problem before the timeout of common proxies (60 s)."""
    assert load_settings().first_byte_seconds < 60


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        pytest.param("PORT", "0", 0, id="any_port"),
        pytest.param("PORT", "", 8000, id="empty_is_default"),
        pytest.param("HOST", " 127.0.0.1 ", "127.0.0.1", id="white_space"),
        pytest.param("log_level", "debug", "debug", id="name_in_small_letters"),
        pytest.param("IMAGE_TIMEOUT_SECONDS", "0.5", 0.5, id="fraction"),
        pytest.param("READ_AHEAD_BYTES", "0", 0, id="no_read_ahead"),
        pytest.param("ALLOW_PRIVATE_UPSTREAM", "true", True, id="true"),
        pytest.param("ALLOW_PRIVATE_UPSTREAM", "1", True, id="one"),
        pytest.param("AUTOENHANCE_API_BASE", "https://api.example.com/v3/", "https://api.example.com/v3", id="slash"),
        pytest.param("AUTOENHANCE_API_BASE", "http://127.0.0.1:9000", "http://127.0.0.1:9000", id="plain_http"),
        pytest.param("UPSTREAM_ALLOWED_HOSTS", "a.example", ("a.example",), id="one_host"),
        pytest.param("UPSTREAM_ALLOWED_HOSTS", " A.example, ,*.b.EXAMPLE,", ("a.example", "*.b.example"), id="hosts"),
        pytest.param("UPSTREAM_ALLOWED_HOSTS", " , ", (), id="no_hosts"),
    ],
)
def test_setting_is_read_from_the_environment(
    name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting is read from the environment variable of its name."""
    monkeypatch.setenv(name, text)
    assert getattr(load_settings(), name.lower()) == value


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a ``.env`` file in the working directory, which the settings read in this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    return tmp_path / ".env"


def test_environment_and_arguments_override_the_env_file(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``.env`` may contain unknown names; the environment overrides it, and arguments override both."""
    env_file.write_text(
        "PORT=1\nHOST=a\nLOG_LEVEL=debug\nNOT_OURS=x\n# note\nUPSTREAM_ALLOWED_HOSTS=x.example,y.example\n"
    )
    monkeypatch.setenv("HOST", "b")
    monkeypatch.setenv("LOG_LEVEL", "error")
    settings = load_settings(log_level="warning")

    assert (settings.port, settings.host, settings.log_level) == (1, "b", "warning")
    assert settings.upstream_allowed_hosts == ("x.example", "y.example")


INVALID: dict[str, list[str]] = {
    "AUTOENHANCE_API_KEY": ["hush-hush\nkey", "hush-hush-ö", "hush-hush\x7f"],
    "AUTOENHANCE_API_BASE": [
        "hush-hush",
        "ftp://hush-hush",
        "https://",
        "https://user:hush-hush@api.example.com",
        "https://api.example.com?key=hush-hush",
        "https://api.example.com#hush-hush",
        "https://[hush-hush",
    ],
    "AUTOENHANCE_API_VERSION": ["hush-hush", "2025-5-8", "2025-05-08\r\nX: hush-hush"],
    "PORT": ["hush-hush", "-1", "65536", "80.5"],
    "LOG_FORMAT": ["hush-hush", "JSON"],
    "LOG_LEVEL": ["hush-hush", "0"],
    "IMAGES_IN_FLIGHT": ["0", "65", "hush-hush"],
    "MAX_IMAGES_IN_FLIGHT": ["0", "257", "hush-hush"],
    "READ_AHEAD_BYTES": ["-1", "8 MiB", "hush-hush"],
    "READ_AHEAD_TOTAL_BYTES": ["-1"],
    "IMAGE_ATTEMPTS": ["0", "21"],
    "IMAGE_TIMEOUT_SECONDS": ["0", "-1", "nan", "hush-hush"],
    "FIRST_BYTE_SECONDS": ["0", "nan"],
    "CLIENT_STALL_SECONDS": ["0"],
    "GIVE_UP_AFTER": ["0"],
    "MAX_IMAGES_PER_ORDER": ["0"],
    "WEBHOOK_SECRET": ["hush-hush", "hush-hush-hush-", "hush-hush-hush-hush-ö"],
    "SERVICE_API_KEYS": ["hush-hush", "hush-hush-hush-hush,hush-hush-hush-hush:full", "hush hush hush hush"],
    "SERVICE_API_KEY": [
        "hush-hush",
        "hush-hush:full",
        "hush hush hush hush",
        "hush-hush-hush-hush,hush:hush-hush-hush",
        "hush-hush-hush-h\u00fcsh",
        "  ",
    ],
    "ADMIN_TOKEN": ["hush-hush", "hush-hush-hush-h\u00fcsh"],
    "SIGNING_KEYS": ["hush-hush-hush-hush", "s" * 32 + ",hush"],
    "ALLOW_PRIVATE_UPSTREAM": ["hush-hush", "2"],
}


@pytest.mark.parametrize(
    ("name", "text"), [pytest.param(name, text, id=f"{name}-{text!a}") for name in INVALID for text in INVALID[name]]
)
def test_invalid_value_is_reported_without_the_value(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid value fails the start with one line, which has the setting's name and nothing of the value."""
    monkeypatch.setenv(name, text)
    with pytest.raises(SettingsError) as caught:
        load_settings()

    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}: ")
    assert "hush" not in problem
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["SERVICE_API_KEYS", "SERVICE_API_KEY"])
def test_admin_token_differs_from_service_keys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One secret for both would make every client an admin."""
    monkeypatch.setenv(name, "hush-hush-hush-hush:full")
    monkeypatch.setenv("ADMIN_TOKEN", "hush-hush-hush-hush")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    (problem,) = caught.value.problems
    assert (
        problem == "ADMIN_TOKEN: Value error, must not be one of SERVICE_API_KEYS, whose holder would become an admin"
    )


def test_service_api_key_follows_the_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """SERVICE_API_KEY follows SERVICE_API_KEYS and is redacted in the log; a key in both is an error."""
    monkeypatch.setenv("SERVICE_API_KEY", "hush-hush-hush-hush:full")
    assert load_settings().all_service_keys() == (SecretStr("hush-hush-hush-hush:full"),)
    monkeypatch.setenv("SERVICE_API_KEYS", "key-of-a-customer-1")
    assert load_settings().all_service_keys() == (
        SecretStr("key-of-a-customer-1"),
        SecretStr("hush-hush-hush-hush:full"),
    )
    assert {"key-of-a-customer-1", "hush-hush-hush-hush"} <= set(load_settings().secrets())
    monkeypatch.setenv("SERVICE_API_KEYS", "hush-hush-hush-hush")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert caught.value.problems == ("SERVICE_API_KEY: Value error, a key is listed twice",)


def test_invalid_settings_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error lists every invalid setting, not only the first one."""
    for name, texts in INVALID.items():
        monkeypatch.setenv(name, texts[0])
    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert {problem.partition(":")[0] for problem in caught.value.problems} == set(INVALID)
    assert "hush" not in str(caught.value)


def test_settings_are_frozen() -> None:
    """A setting cannot be assigned."""
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]  # mypy knows it too


def test_printed_settings_contain_no_secret() -> None:
    """No representation of the settings contains a secret."""
    settings = load_settings(autoenhance_api_key="hush-hush")

    assert settings.autoenhance_api_key == SecretStr("hush-hush")
    assert "hush" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_every_setting_is_described() -> None:
    """Each setting has its environment variable, its default in words, and a whole sentence."""
    described = {name: (default, meaning) for name, default, meaning in describe_settings()}

    assert set(described) == {name.upper() for name in Settings.model_fields}
    assert all(meaning.endswith(".") and meaning[0].isupper() for _, meaning in described.values())
    expected: dict[str, Any] = {
        "PORT": "8000",
        "AUTOENHANCE_API_KEY": "(none)",
        "UPSTREAM_ALLOWED_HOSTS": "(none)",
        "ALLOW_PRIVATE_UPSTREAM": "false",
    }
    assert {name: described[name][0] for name in expected} == expected


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_default_of_every_setting_is_valid(name: str) -> None:
    """Defaults pass the validation of configured values."""
    default = Settings.model_fields[name].default
    assert getattr(load_settings(**{name: default}), name) == default


UNITS = ("_seconds", "_bytes", "_per_second")


def test_float_settings_have_their_unit_in_their_name() -> None:
    """A float setting's name ends with its unit."""
    floats = {name for name, field in Settings.model_fields.items() if field.annotation is float}
    assert {name for name in floats if not name.endswith(UNITS)} == set()
