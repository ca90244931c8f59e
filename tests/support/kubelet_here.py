"""The part of a kubelet's work that lets one container of a Pod object run as a process of this machine.

Volumes become folders, mount paths become paths below them, fieldRefs are resolved, named ports are looked up. What a
container is given is exactly what the Pod says; only where its paths begin differs.
"""

import base64
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from kubernetes import client

from equipoise_cluster import Cluster


@dataclass
class PodHere:
    """A pod of the cluster whose containers run here, with 127.0.0.0/8's `address` as its own."""

    cluster: Cluster
    pod: client.V1Pod
    folder: Path
    address: str

    def container(self, name: str) -> client.V1Container:
        spec = self.pod.spec
        return next(c for c in [*spec.init_containers, *spec.containers] if c.name == name)

    def mount(self) -> None:
        """Make the folder of each volume, with what the cluster holds for it."""
        core, namespace = client.CoreV1Api(self.cluster.admin), self.pod.metadata.namespace
        for volume in self.pod.spec.volumes:
            place = self.folder / volume.name
            place.mkdir(parents=True)
            files: dict[str, bytes] = {}
            if volume.config_map:
                data = core.read_namespaced_config_map(volume.config_map.name, namespace).data
                files = {name: text.encode() for name, text in data.items()}
            elif volume.secret:
                data = core.read_namespaced_secret(volume.secret.secret_name, namespace).data
                files = {name: base64.b64decode(text) for name, text in data.items()}
            elif volume.projected:
                for source in volume.projected.sources:
                    token = source.service_account_token
                    files[token.path] = self.cluster.token(
                        namespace,
                        self.pod.spec.service_account_name,
                        audience=token.audience,
                        seconds=token.expiration_seconds,
                        pod=(self.pod.metadata.name, self.pod.metadata.uid),
                    ).encode()
            else:
                assert volume.empty_dir is not None, f"{volume.name}: a kind of volume that is not known here"
            for name, content in files.items():
                (place / name).write_bytes(content)

    def here(self, container: client.V1Container, text: str) -> str:
        """Replace every path below a mount by where it is here."""
        places = {mount.mount_path: str(self.folder / mount.name) for mount in container.volume_mounts}
        longest_first = sorted(places, key=len, reverse=True)
        mounted = re.compile(rf"(?<![\w./-])({'|'.join(map(re.escape, longest_first))})(?![\w.-])")
        return mounted.sub(lambda match: places[match[1]], text)

    def environment(self, container: client.V1Container) -> dict[str, str]:
        """The container's variables, and of this machine's only what programs need to run at all."""
        values = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        for variable in container.env:
            if variable.value_from:
                values[variable.name] = self._field(variable.value_from.field_ref.field_path)
            else:
                values[variable.name] = self.here(container, variable.value)
        return values

    def port(self, container: client.V1Container, port: int | str) -> int:
        """A port by number or name."""
        if isinstance(port, int):
            return port
        return next(each.container_port for each in container.ports if each.name == port)

    def probe(self, container: client.V1Container, probe: client.V1Probe) -> int:
        """The status that an httpGet probe gets; 0 where nobody answers."""
        get = probe.http_get
        url = f"http://{self.address}:{self.port(container, get.port)}{get.path}"
        try:
            with urllib.request.urlopen(url, timeout=probe.timeout_seconds or 1) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def _field(self, path: str) -> str:
        metadata = self.pod.metadata
        return {
            "metadata.name": metadata.name,
            "metadata.namespace": metadata.namespace,
            "metadata.uid": metadata.uid,
            "status.podIP": self.address,
        }[path]
