"""Where the sidecar's parts are: from the environment, overridden by flags. What it does is configuration, not settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from equipoise_api.names import ADMIN_PORT, DATA_PORT, HEALTH_PORT
from equipoise_sidecar.engine.pool import EngineAddress

Port = Annotated[int, Field(ge=1, le=65535)]


class SettingsError(ValueError):
    """Settings that cannot work: which variable or flag, and how to mend it."""


class Settings(BaseModel):
    """One process's settings. Each field's alias is its environment variable."""

    model_config = ConfigDict(
        frozen=True, populate_by_name=True, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )

    engine: Annotated[EngineAddress, Field(alias="EQUIPOISE_ENGINE")]
    """The engine: `unix:/run/equipoise/engine.sock` or `http://127.0.0.1:8001`."""
    host: Annotated[str, Field(alias="EQUIPOISE_HOST", min_length=1)] = "0.0.0.0"  # noqa: S104 - a pod's own address
    """Address that the ports are opened on."""
    data_port: Annotated[Port, Field(alias="EQUIPOISE_DATA_PORT")] = DATA_PORT
    admin_port: Annotated[Port, Field(alias="EQUIPOISE_ADMIN_PORT")] = ADMIN_PORT
    health_port: Annotated[Port, Field(alias="EQUIPOISE_HEALTH_PORT")] = HEALTH_PORT
    state_dir: Annotated[Path | None, Field(alias="EQUIPOISE_STATE_DIR")] = None
    """Keeps configuration and counters over a restart, and holds the control socket. None: nothing is kept."""
    drained_file: Annotated[Path | None, Field(alias="EQUIPOISE_DRAINED_FILE")] = None
    """Made by `drain` when nothing is left to do; the engine's preStop hook waits for it."""
    drain_seconds: Annotated[float, Field(alias="EQUIPOISE_DRAIN_SECONDS", ge=0, le=86_400)] = 60.0
    """Longest time for queue and streams to end after SIGTERM."""
    config_file: Annotated[Path | None, Field(alias="EQUIPOISE_CONFIG_FILE")] = None
    """A SidecarConfig (JSON or YAML) in place of an operator; SIGHUP reads it again."""
    issuer_url: Annotated[str | None, Field(alias="EQUIPOISE_ISSUER_URL", pattern=r"^https://[^/]+/?$")] = (
        None
    )
    """The operator's certificate endpoint: `https://equipoise-operator.equipoise.svc:8443`."""
    ca_file: Annotated[Path | None, Field(alias="EQUIPOISE_CA_FILE")] = None
    """Certificates that the issuer is verified against."""
    token_file: Annotated[Path | None, Field(alias="EQUIPOISE_TOKEN_FILE")] = None
    """Projected ServiceAccount token that is shown to the issuer."""
    install: Annotated[str | None, Field(alias="EQUIPOISE_INSTALL", min_length=1)] = None
    """Name of the install, as in its SPIFFE identities."""
    pod_name: Annotated[str, Field(alias="POD_NAME")] = ""
    pod_namespace: Annotated[str, Field(alias="POD_NAMESPACE")] = ""
    pod_uid: Annotated[str, Field(alias="POD_UID")] = ""

    @field_validator("engine", mode="before")
    @classmethod
    def _parse_engine(cls, value: Any) -> Any:
        return EngineAddress.parse(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        ports = [self.data_port, self.health_port] + [self.admin_port] * (self.issuer_url is not None)
        if len(set(ports)) != len(ports):
            raise ValueError(f"the ports {ports} must differ")
        if (self.config_file is None) == (self.issuer_url is None):
            raise ValueError(
                "set EQUIPOISE_ISSUER_URL (the operator configures this sidecar) or a configuration file, one of the two"
            )
        if self.issuer_url is not None:
            needed = {
                "EQUIPOISE_CA_FILE": self.ca_file,
                "EQUIPOISE_TOKEN_FILE": self.token_file,
                "EQUIPOISE_INSTALL": self.install,
            }
            missing = [name for name, value in needed.items() if not value]
            if missing:
                raise ValueError(f"EQUIPOISE_ISSUER_URL needs {', '.join(missing)} too")
        return self

    @property
    def control_socket(self) -> Path | None:
        """Where `drain` reaches the process."""
        return None if self.state_dir is None else self.state_dir / "control.sock"

    @classmethod
    def load(cls, environment: Mapping[str, str], **flags: Any) -> Self:
        """Read the environment; a flag that is not None wins. Raises SettingsError, naming variable and reason."""
        names = {field.alias: name for name, field in cls.model_fields.items() if field.alias}
        values: dict[str, Any] = {
            names[key]: value for key, value in environment.items() if key in names and value
        }
        values.update({name: value for name, value in flags.items() if value is not None})
        try:
            return cls(**values)
        except ValidationError as error:
            raise SettingsError("; ".join(_said(each, names) for each in error.errors())) from None


def _said(error: Any, names: Mapping[str, str]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    variables = {name: variable for variable, name in names.items()}
    name = names.get(str(error["loc"][0]), str(error["loc"][0]))
    place = f"{variables[name]} (or --{name.replace('_', '-')})"
    return f"{place} must be set" if error["type"] == "missing" else f"{place}: {message}"
