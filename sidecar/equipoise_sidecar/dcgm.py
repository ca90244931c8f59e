"""Reads dcgm-exporter's exposition: which rows are the pod's, and what they say of its GPUs. Pure.

Whose a row is stands in its labels: `pod`, `namespace`, `pod_uid` as the exporter writes them; `exported_pod` and so on
where a Prometheus without honorLabels stands between, whose own `pod` is then the exporter's; `pod_name` and
`pod_namespace` in very old ones. The container is not looked at: the one that holds the GPU is the engine's, not ours.
Where no row names any pod, a node's only GPU is taken for the pod's.

A device is a GPU or a MIG instance (`GPU_I_ID`). A time-sliced GPU is there once for each pod, each time with the whole
device's value: it is the pod's utilisation, and its time and power are divided by the pods that share it. An instance has
the whole GPU's power, which is divided by the GPU's instances.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families

GR_ENGINE_ACTIVE = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
GPU_UTIL = "DCGM_FI_DEV_GPU_UTIL"
SM_ACTIVE = "DCGM_FI_PROF_SM_ACTIVE"
TENSOR_ACTIVE = "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"
DRAM_ACTIVE = "DCGM_FI_PROF_DRAM_ACTIVE"
POWER_USAGE = "DCGM_FI_DEV_POWER_USAGE"
XID_ERRORS = "DCGM_FI_DEV_XID_ERRORS"

_LARGEST = {
    GR_ENGINE_ACTIVE: 1.0,
    GPU_UTIL: 100.0,
    SM_ACTIVE: 1.0,
    TENSOR_ACTIVE: 1.0,
    DRAM_ACTIVE: 1.0,
    POWER_USAGE: 100_000.0,
    XID_ERRORS: 1e6,
}
"""Fields that are read, and what they can be at most: DCGM writes huge numbers where a device does not say."""
_PREFIXES = tuple(field.encode() for field in _LARGEST)
_UTILISATION = (GR_ENGINE_ACTIVE.encode(), GPU_UTIL.encode())
_OWNERS = (
    ("exported_pod", "exported_namespace", "exported_pod_uid"),
    ("pod", "namespace", "pod_uid"),
    ("pod_name", "pod_namespace", "pod_uid"),
)

Problem = Literal["Unreachable", "BadAnswer", "NoRows", "NoMatch", "Frozen"]
Device = tuple[str, str]
"""UUID of the GPU, and number of the MIG instance or ""."""


class DcgmError(Exception):
    """Nothing of the pod could be read: `problem` for machines, the text for people."""

    def __init__(self, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.problem: Problem = problem


@dataclass(frozen=True, slots=True)
class PodId:
    """The pod that is looked for."""

    namespace: str
    name: str
    uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one exposition says of the pod's devices. None: it does not say. Ratios are from 0 to 1."""

    devices: int
    utilisation: float | None
    """Mean over the devices."""
    least_utilisation: float | None
    busy_devices: float
    """GPU seconds a second: the devices' utilisation summed, shared ones by part."""
    sm_active: float | None = None
    tensor_active: float | None = None
    dram_active: float | None = None
    power_watts: float | None = None
    """Sum, shared devices by part."""
    xid: int | None = None
    """The largest of the last errors; 0 is none."""
    fields: tuple[str, ...] = ()
    by_pod: bool = True
    """False: no row names a pod, and the node has one device."""
    sampled_at: float | None = None
    """Seconds since the epoch, where the exposition has time stamps."""

    @property
    def repeats_by_chance(self) -> bool:
        """Whether equal values, read again, may well be new ones: nothing runs, or only round numbers are there."""
        ratios = (self.sm_active, self.tensor_active, self.dram_active)
        fine = [value for value in ratios if value]
        if GR_ENGINE_ACTIVE in self.fields and self.utilisation:
            fine.append(self.utilisation)
        return not self.utilisation or not (self.power_watts or any(value < 1 for value in fine))


@dataclass(frozen=True, slots=True)
class _Row:
    field: str
    device: Device
    owner: PodId | None
    value: float
    at: float | None


def read(text: bytes, pod: PodId) -> Reading:
    """Read an exposition. DcgmError says why there is nothing of the pod in it. O(rows), few of which are parsed."""
    rows = _relevant(text, pod)
    if not rows:
        raise DcgmError("NoRows", "the exposition has none of the DCGM fields that are read")
    mine, by_pod = _of_pod(rows, pod)
    devices = sorted({row.device for row in mine if row.field in {GR_ENGINE_ACTIVE, GPU_UTIL, POWER_USAGE}})
    if not devices:
        raise DcgmError("NoRows", "the pod's rows say neither utilisation nor power")
    values: dict[tuple[Device, str], float] = {}
    for row in mine:
        values.setdefault((row.device, row.field), row.value)
    used = {device: _utilisation(device, values) for device in devices}
    known = [value for value in used.values() if value is not None]
    parts = {device: _part(device, rows) for device in devices}
    powers = [power for device in devices if (power := _power(device, rows, values)) is not None]
    gpus = {uuid for uuid, _ in devices}
    errors = [int(row.value) for row in rows if row.field == XID_ERRORS and row.device[0] in gpus]
    return Reading(
        devices=len(devices),
        utilisation=_mean(known),
        least_utilisation=min(known, default=None),
        busy_devices=math.fsum(value * parts[device] for device, value in used.items() if value is not None),
        sm_active=_mean(_of_field(SM_ACTIVE, devices, values)),
        tensor_active=_mean(_of_field(TENSOR_ACTIVE, devices, values)),
        dram_active=_mean(_of_field(DRAM_ACTIVE, devices, values)),
        power_watts=math.fsum(powers) if powers else None,
        xid=max(errors, default=None),
        fields=tuple(field for field in _LARGEST if any(key[1] == field for key in values)),
        by_pod=by_pod,
        sampled_at=max((row.at for row in mine if row.at is not None), default=None),
    )


def _relevant(text: bytes, pod: PodId) -> list[_Row]:
    """Parse the rows of the pod's devices, whoever else shares them; where none is the pod's, what tells devices apart.

    Parsing a row costs 50 us and more, and a node of eight GPUs in seven parts has 500.
    """
    lines = [line for line in text.split(b"\n") if line.startswith(_PREFIXES)]
    name = pod.name.encode()
    mine = list(_rows(line for line in lines if name in line)) if name else []
    gpus = {row.device[0].encode() for row in mine if row.owner is not None and _is(row.owner, pod)}
    if not gpus:
        used = list(_rows(line for line in lines if line.startswith(_UTILISATION)))
        return used if len({row.device for row in used}) > 1 else list(_rows(lines))
    return list(_rows(line for line in lines if any(b'"' + gpu + b'"' in line for gpu in gpus)))


def _rows(lines: Iterable[bytes]) -> Iterator[_Row]:
    """Parse rows; what is no sample, or no value that can be, is left out."""
    for line in lines:
        try:
            families = list(text_string_to_metric_families(line.decode()))
        except (ValueError, IndexError, KeyError):
            continue  # the parser's ways of saying that it is no sample
        for sample in (sample for family in families for sample in family.samples):
            largest = _LARGEST.get(sample.name)
            if largest is None or not 0 <= sample.value <= largest:
                continue
            labels, at = sample.labels, sample.timestamp
            gpu = labels.get("UUID") or labels.get("uuid") or labels.get("gpu") or labels.get("device", "")
            device = (gpu, labels.get("GPU_I_ID", ""))
            yield _Row(sample.name, device, _owner(labels), sample.value, None if at is None else float(at))


def _owner(labels: Mapping[str, str]) -> PodId | None:
    for name, namespace, uid in _OWNERS:
        if name in labels:
            owner = PodId(labels.get(namespace, ""), labels[name], labels.get(uid, ""))
            return owner if owner.name else None
    return None


def _of_pod(rows: Sequence[_Row], pod: PodId) -> tuple[list[_Row], bool]:
    mine = [row for row in rows if row.owner is not None and _is(row.owner, pod)]
    if mine:
        return mine, True
    devices = {row.device for row in rows if row.field in {GR_ENGINE_ACTIVE, GPU_UTIL}}
    whose = f"pod {pod.namespace}/{pod.name}"
    if any(row.owner is not None for row in rows):
        raise DcgmError("NoMatch", f"rows of {len(devices)} GPUs, none of {whose}: does it hold one?")
    if len(devices) != 1:
        raise DcgmError(
            "NoMatch",
            f"no row names a pod, and which of {len(devices)} GPUs is that of {whose} cannot be told: "
            "set DCGM_EXPORTER_KUBERNETES=true on the exporter",
        )
    (device,) = devices
    return [row for row in rows if row.device == device], False


def _is(owner: PodId, pod: PodId) -> bool:
    same = owner.name == pod.name and owner.namespace in ("", pod.namespace)
    return same and (not owner.uid or not pod.uid or owner.uid == pod.uid)


def _utilisation(device: Device, values: Mapping[tuple[Device, str], float]) -> float | None:
    active = values.get((device, GR_ENGINE_ACTIVE))
    if active is not None:
        return active
    percent = values.get((device, GPU_UTIL))
    # Of an instance it says nothing: DCGM has it for whole GPUs alone.
    return None if percent is None or device[1] else percent / 100


def _part(device: Device, rows: Iterable[_Row]) -> float:
    """Return the pod's part of a device: one over the pods that share it."""
    owners = {(row.owner.namespace, row.owner.name) for row in rows if row.device == device and row.owner}
    return 1 / max(1, len(owners))


def _power(device: Device, rows: Sequence[_Row], values: Mapping[tuple[Device, str], float]) -> float | None:
    uuid, instance = device
    watts = values.get((device, POWER_USAGE))
    if not instance:
        return None if watts is None else watts * _part(device, rows)
    if watts is None:
        whole = [row.value for row in rows if row.field == POWER_USAGE and row.device[0] == uuid]
        if not whole:
            return None
        watts = whole[0]
    instances = {row.device[1] for row in rows if row.device[0] == uuid and row.device[1]}
    return watts / len(instances) * _part(device, rows)


def _of_field(
    field: str, devices: Iterable[Device], values: Mapping[tuple[Device, str], float]
) -> list[float]:
    return [values[device, field] for device in devices if (device, field) in values]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
