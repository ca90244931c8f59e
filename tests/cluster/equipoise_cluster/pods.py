"""Pod objects with no kubelet: created, bound to a node, and given the status that a kubelet would write."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException


def create(
    api_client: client.ApiClient, manifest: Mapping[str, Any], *, namespace: str, node: str
) -> client.V1Pod:
    """Creates the pod on the node. Returns the object; pydantic's ValidationError names a field that no pod has."""
    pod = client.V1Pod.model_validate({**manifest, "spec": {**manifest["spec"], "nodeName": node}})
    return client.CoreV1Api(api_client).create_namespaced_pod(namespace, pod)


def bind(api_client: client.ApiClient, namespace: str, name: str, node: str) -> None:
    """Does a scheduler's work for a pod that has no node."""
    binding = client.V1Binding(
        metadata=client.V1ObjectMeta(name=name),
        target=client.V1ObjectReference(api_version="v1", kind="Node", name=node),
    )
    # The answer is a Status, which the client would read as a Binding.
    client.CoreV1Api(api_client).create_namespaced_pod_binding(
        name, namespace, binding, _preload_content=False
    )


def set_running(
    api_client: client.ApiClient,
    pod: client.V1Pod,
    *,
    ip: str,
    host_ip: str,
    ready: bool = True,
    restarts: int = 0,
) -> None:
    """Writes the status of a pod whose containers all run, native sidecars among them."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert pod.spec
    assert pod.metadata
    assert pod.metadata.name
    assert pod.metadata.namespace
    init = pod.spec.init_containers or []
    status = {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
        "startTime": now,
        "conditions": [
            _condition("PodScheduled", True, now),
            _condition("Initialized", True, now),
            _condition("ContainersReady", ready, now),
            _condition("Ready", ready, now),
        ],
        "initContainerStatuses": [
            _running(container, now, ready, restarts)
            if container.restart_policy == "Always"
            else _completed(container, now)
            for container in init
        ],
        "containerStatuses": [_running(container, now, ready, restarts) for container in pod.spec.containers],
    }
    # A patch would merge the addresses with those of before. Without a resource version: the pod may be newer.
    body = pod.model_copy(deep=True)
    assert body.metadata
    body.metadata.resource_version = None
    body.status = client.V1PodStatus.model_validate(status)
    client.CoreV1Api(api_client).replace_namespaced_pod_status(
        pod.metadata.name, pod.metadata.namespace, body
    )


def delete(api_client: client.ApiClient, namespace: str, name: str) -> None:
    """Removes the pod at once: nobody would confirm that its containers ended. None there is no error."""
    try:
        client.CoreV1Api(api_client).delete_namespaced_pod(name, namespace, grace_period_seconds=0)
    except ApiException as error:
        if error.status != 404:
            raise


def _condition(kind: str, true: bool, now: str) -> dict[str, str]:  # noqa: FBT001 - reads as the table it fills
    return {"type": kind, "status": "True" if true else "False", "lastTransitionTime": now}


def _running(container: client.V1Container, now: str, ready: bool, restarts: int) -> dict[str, Any]:  # noqa: FBT001 - as above
    return {
        **_container(container),
        "restartCount": restarts,
        "ready": ready,
        "started": True,
        "state": {"running": {"startedAt": now}},
    }


def _completed(container: client.V1Container, now: str) -> dict[str, Any]:
    ended = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
    return {**_container(container), "restartCount": 0, "ready": True, "state": {"terminated": ended}}


def _container(container: client.V1Container) -> dict[str, str]:
    image = container.image or ""
    return {"name": container.name, "image": image, "imageID": image}
