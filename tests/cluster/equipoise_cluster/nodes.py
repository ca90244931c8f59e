"""Node objects with no kubelet behind them."""

from kubernetes import client


def create(api_client: client.ApiClient, name: str, address: str) -> None:
    """A Node that is Ready and has room for any number of pods."""
    core = client.CoreV1Api(api_client)
    metadata = client.V1ObjectMeta(name=name, labels={"kubernetes.io/hostname": name})
    core.create_node(client.V1Node(metadata=metadata))
    room = {"cpu": "1k", "memory": "1Ti", "pods": "100k"}
    status = {
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
        "capacity": room,
        "allocatable": room,
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "NoKubelet", "message": "pods are run by hand"}
        ],
    }
    core.patch_node_status(name, {"status": status})
