"""Settings come from the environment, flags win, and what cannot work is named."""

from pathlib import Path

import pytest

from equipoise_sidecar.settings import Settings, SettingsError

STANDALONE = {"EQUIPOISE_ENGINE": "unix:/run/engine.sock", "EQUIPOISE_CONFIG_FILE": "policy.json"}
MANAGED = {
    "EQUIPOISE_ENGINE": "http://127.0.0.1:8001",
    "EQUIPOISE_ISSUER_URL": "https://equipoise.svc:8443",
    "EQUIPOISE_CA_FILE": "/ca/ca.pem",
    "EQUIPOISE_TOKEN_FILE": "/token",
    "EQUIPOISE_INSTALL": "equipoise",
    "POD_UID": "uid",
}


def test_defaults_are_the_documented_ports():
    settings = Settings.load(STANDALONE)
    assert (settings.data_port, settings.admin_port, settings.health_port) == (8000, 9443, 9080)
    assert str(settings.engine) == "unix:/run/engine.sock"
    assert settings.control_socket is None


def test_a_flag_wins_over_its_variable_and_an_empty_variable_is_none():
    environment = {**MANAGED, "EQUIPOISE_DATA_PORT": "8100", "EQUIPOISE_STATE_DIR": ""}
    assert Settings.load(environment).data_port == 8100
    settings = Settings.load(environment, data_port=8200, host=None, state_dir=Path("/state"))
    assert (settings.data_port, settings.host) == (8200, "0.0.0.0")
    assert settings.control_socket == Path("/state/control.sock")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"EQUIPOISE_ENGINE": ""}, "EQUIPOISE_ENGINE (or --engine) must be set"),
        ({"EQUIPOISE_ENGINE": "unix:relative"}, "EQUIPOISE_ENGINE (or --engine): engine address"),
        ({"EQUIPOISE_ENGINE": "https://x"}, "must be unix:/path or http://host:port"),
        ({"EQUIPOISE_DATA_PORT": "0"}, "EQUIPOISE_DATA_PORT (or --data-port)"),
        ({"EQUIPOISE_HEALTH_PORT": "8000"}, "the ports [8000, 8000, 9443] must differ"),
        ({"EQUIPOISE_DRAIN_SECONDS": "-1"}, "EQUIPOISE_DRAIN_SECONDS (or --drain-seconds)"),
        ({"EQUIPOISE_CONFIG_FILE": "x"}, "one of the two"),
        ({"EQUIPOISE_ISSUER_URL": ""}, "one of the two"),
        ({"EQUIPOISE_ISSUER_URL": "http://x"}, "EQUIPOISE_ISSUER_URL (or --issuer-url)"),
        (
            {"EQUIPOISE_TOKEN_FILE": "", "EQUIPOISE_INSTALL": ""},
            "EQUIPOISE_TOKEN_FILE, EQUIPOISE_INSTALL too",
        ),
    ],
)
def test_what_cannot_work_is_named(changes, said):
    with pytest.raises(SettingsError) as error:
        Settings.load({**MANAGED, **changes})
    assert said in str(error.value)


def test_the_admin_port_may_be_anything_where_there_is_none():
    assert Settings.load({**STANDALONE, "EQUIPOISE_HEALTH_PORT": "9443"}).health_port == 9443
