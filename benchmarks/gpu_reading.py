"""What GPU telemetry costs a sidecar: reading an exposition, and the two marks of a request.

python benchmarks/gpu_reading.py
"""

import contextlib
import time

from equipoise_sidecar.dcgm import DcgmError, PodId, Reading, read
from equipoise_sidecar.gpu import GpuTelemetry

FIELDS = [
    "DEV_GPU_UTIL",
    "DEV_POWER_USAGE",
    "DEV_XID_ERRORS",
    "PROF_GR_ENGINE_ACTIVE",
    "PROF_SM_ACTIVE",
    "PROF_PIPE_TENSOR_ACTIVE",
    "PROF_DRAM_ACTIVE",
    *(f"DEV_OTHER_{number}" for number in range(18)),
]
NODE = 'pci_bus_id="00000000:00:02.0",modelName="NVIDIA H100 80GB HBM3",Hostname="node-1",DCGM_FI_DRIVER_VERSION="580.95.05"'


def exposition(gpus: int, instances: int) -> bytes:
    """Return a node's exposition, a pod a device."""
    rows = []
    for gpu in range(gpus):
        for instance in range(max(1, instances)):
            mig = f',GPU_I_PROFILE="1g.10gb",GPU_I_ID="{instance}"' if instances else ""
            owner = f'container="vllm",namespace="team",pod="vllm-{gpu}-{instance}",pod_uid=""'
            labels = f'gpu="{gpu}",UUID="GPU-a8394b51-c086-568a-9f1a-c1e1c934c4{gpu:02d}",device="nvidia{gpu}",{NODE}{mig},{owner}'
            rows += [f"DCGM_FI_{field}{{{labels}}} 0.5" for field in FIELDS]
    return "\n".join(rows).encode()


def milliseconds(text: bytes, pod: PodId, times: int = 30) -> float:
    """Return the least time of a reading."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        with contextlib.suppress(DcgmError):
            read(text, pod)
        best = min(best, time.perf_counter() - began)
    return best * 1e3


def microseconds_a_request(requests: int = 100_000) -> float:
    """Return the least mean time of a request's marks, over five rounds."""
    gpu, now, best = GpuTelemetry(), 0.0, float("inf")
    gpu.observe(
        Reading(devices=1, utilisation=0.5, least_utilisation=0.5, busy_devices=0.5), {}, busy=True, now=now
    )
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(requests // 5):
            now += 1e-4
            gpu.mean_since(gpu.mark(now), now + 5e-5)
        best = min(best, (time.perf_counter() - began) / (requests // 5))
    return best * 1e6


def main() -> None:
    print("| GPUs | instances each | bytes | ms | ms where no row is the pod's |")
    print("| --- | --- | --- | --- | --- |")
    for gpus, instances in ((1, 0), (8, 0), (8, 7)):
        text = exposition(gpus, instances)
        mine, none = (
            milliseconds(text, PodId("team", "vllm-0-0")),
            milliseconds(text, PodId("team", "absent")),
        )
        print(f"| {gpus} | {instances} | {len(text):,} | {mine:.1f} | {none:.1f} |")
    print(f"\na request: {microseconds_a_request():.1f} us")


if __name__ == "__main__":
    main()
