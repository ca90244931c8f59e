"""Names that more than one part has to spell alike: the API group, labels, ports, headers, paths."""

GROUP = "equipoise.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
TENANTS = "tenants"
FAIRNESS_POLICIES = "fairnesspolicies"

DEFAULT_CLASS_NAME = "equipoise"
"""`spec.className` of a policy that names none; an operator serves one class."""

DEFAULT_TENANT = "default"
"""Identifier of the tenant of requests that name nobody. Real ones are `namespace/name`, so it collides with none."""

CREDENTIAL_LABEL = f"{GROUP}/credential"
"""A Secret is read only where this label is `"true"`."""

SIDECAR_CONTAINER = "equipoise-sidecar"
"""A pod is Equipoise's to configure when a container (or native sidecar) has this name."""

ADMIN_PORT_NAME = "equipoise-admin"
DATA_PORT = 8000
ADMIN_PORT = 9443
HEALTH_PORT = 9080
ISSUER_PORT = 8443
OPERATOR_PORT = 8080

CONFIG_PATH = "/equipoise/v1/config"
STATE_PATH = "/equipoise/v1/state"
GPU_EXPORTER_PATH = "/equipoise/v1/gpu-exporter"
CERTIFICATES_PATH = "/equipoise/v1/certificates"

TOKEN_AUDIENCE = "equipoise.dev/issuer"  # noqa: S105 - an audience is not a secret
"""Audience of the projected ServiceAccount token that a sidecar shows to the issuer."""

APPLICATION_HEADER = "X-Equipoise-Application"
"""What a client says of a request: headers, or `equipoise.*` keys of the body's `metadata` (docs/requests.md)."""
USER_HEADER = "X-Equipoise-User"
INTERACTION_HEADER = "X-Equipoise-Interaction"
CALL_HEADER = "X-Equipoise-Call"
CALLS_HEADER = "X-Equipoise-Calls"
TTFT_HEADER = "X-Equipoise-TTFT-Milliseconds"
TPOT_HEADER = "X-Equipoise-TPOT-Milliseconds"
E2E_HEADER = "X-Equipoise-E2E-Milliseconds"
METADATA_PREFIX = "equipoise."

LLM_D_FAIRNESS_ID_HEADERS = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
"""llm-d's headers, the present spelling first, then the one that it still reads."""
LLM_D_OBJECTIVE_HEADERS = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
LLM_D_TTFT_HEADERS = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
LLM_D_TPOT_HEADERS = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")


def operator_identity(install: str) -> str:
    """SPIFFE identity of an install's operator: the only peer from which a sidecar takes configuration."""
    return f"spiffe://{install}/operator"


def pod_identity(install: str, pod_uid: str) -> str:
    """SPIFFE identity of the sidecar in the pod with this uid."""
    return f"spiffe://{install}/pod/{pod_uid}"


def tenant_id(namespace: str, name: str) -> str:
    """How a Tenant is named outside Kubernetes: in configuration, metrics and response headers."""
    return f"{namespace}/{name}"
