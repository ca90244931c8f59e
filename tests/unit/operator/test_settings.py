import pytest

from equipoise_operator.settings import DCGM_SELECTORS, Settings, SettingsError

ENVIRONMENT = {"POD_NAME": "operator-0", "POD_NAMESPACE": "platform"}


def test_an_empty_environment_serves_the_whole_cluster():
    settings = Settings.from_environment({})
    assert settings.watch_namespaces == ()
    assert settings.install == settings.class_name == "equipoise"
    assert settings.lease_name == "equipoise-operator"
    assert (settings.http_port, settings.issuer_port) == (8080, 8443)


def test_a_process_without_a_pods_name_gets_one_of_its_own():
    assert Settings.from_environment({}).pod_name != Settings.from_environment({}).pod_name


def test_lists_are_separated_by_commas():
    settings = Settings.from_environment(
        ENVIRONMENT
        | {
            "EQUIPOISE_WATCH_NAMESPACES": "team-a, team-b,",
            "EQUIPOISE_ISSUER_NAMES": "equipoise.platform.svc,10.0.0.1",
        }
    )
    assert settings.watch_namespaces == ("team-a", "team-b")
    assert settings.issuer_names == ("equipoise.platform.svc", "10.0.0.1")


def test_exporters_are_looked_for_where_a_namespace_is_named():
    assert Settings.from_environment(ENVIRONMENT).dcgm_namespace is None
    named = ENVIRONMENT | {"EQUIPOISE_DCGM_NAMESPACE": "gpu-operator"}
    assert Settings.from_environment(named).dcgm_namespace == "gpu-operator"
    assert Settings.from_environment(named).dcgm_selectors == DCGM_SELECTORS
    own = named | {"EQUIPOISE_DCGM_SELECTORS": "app in (a, b); x=y"}
    assert Settings.from_environment(own).dcgm_selectors == ("app in (a, b)", "x=y")


def test_the_install_names_the_lease():
    settings = Settings.from_environment(ENVIRONMENT | {"EQUIPOISE_INSTALL": "blue"})
    assert settings.lease_name == "blue-operator"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EQUIPOISE_HTTP_PORT", "http"),
        ("EQUIPOISE_ISSUER_PORT", "70000"),
        ("EQUIPOISE_HTTP_PORT", "-1"),
        ("EQUIPOISE_INSTALL", "Not A Label"),
        ("EQUIPOISE_WATCH_NAMESPACES", "team-a,Team-B"),
        ("POD_NAMESPACE", "a/b"),
        ("EQUIPOISE_DCGM_NAMESPACE", "GPU"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(variable, value):
    with pytest.raises(SettingsError, match=variable):
        Settings.from_environment(ENVIRONMENT | {variable: value})
