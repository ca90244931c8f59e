"""Expositions as they come from real clusters, and shapes that documentation and old versions have."""

from pathlib import Path

import pytest

from equipoise_sidecar.dcgm import DcgmError, PodId, read

FILES = Path(__file__).parents[4] / "shared" / "data" / "dcgm"
POD = PodId("team", "vllm-0", "uid-0")


def real(name):
    path = FILES / name
    if not path.exists():
        pytest.skip(f"{path} is missing: expositions of real exporters are not part of the repository")
    return path.read_bytes()


def row(field, value, *, gpu=0, uuid=None, at=None, **labels):
    labels = {"gpu": str(gpu), "UUID": uuid or f"GPU-{gpu}", "device": f"nvidia{gpu}", **labels}
    pairs = ",".join(f'{name}="{text}"' for name, text in labels.items())
    return f"DCGM_FI_{field}{{{pairs}}} {value}{'' if at is None else f' {at}'}\n"


def of(*rows):
    return "".join(rows).encode()


def mine(field, value, **labels):
    return row(field, value, **{"pod": "vllm-0", "namespace": "team", "container": "vllm", **labels})


def problem(text, pod=POD):
    with pytest.raises(DcgmError) as error:
        read(text, pod)
    return error.value.problem, str(error.value)


class TestRealExpositions:
    def test_rows_with_pod_labels_are_found_by_the_pod(self):
        text = real("pod_labels_rtx4000.prom")
        reading = read(text, PodId("default", "cuda-75454ffb9f-8ljq7", "some-uid"))
        assert (reading.devices, reading.by_pod) == (1, True)
        assert reading.utilisation == reading.least_utilisation == 0.004656
        assert (reading.tensor_active, reading.dram_active) == (0.0, 0.003074)
        assert (reading.sm_active, reading.power_watts, reading.xid) == (None, None, 0)
        kind, message = problem(text)
        assert kind == "NoMatch"
        assert "team/vllm-0" in message

    def test_a_node_with_one_gpu_and_no_pod_labels(self):
        reading = read(real("no_pod_l4.prom"), POD)
        assert (reading.devices, reading.utilisation, reading.by_pod) == (1, 0.0, False)
        assert reading.fields == ("DCGM_FI_DEV_GPU_UTIL",)

    def test_a_busy_gpu_beside_a_row_of_one_of_its_instances(self):
        reading = read(real("busy_a100_and_mig.prom"), POD)
        assert (reading.devices, reading.utilisation) == (1, 0.99563)
        assert (reading.tensor_active, reading.dram_active, reading.xid) == (0.92926, 0.690789, 0)


class TestWhoseARowIs:
    def test_exported_labels_go_before_the_exporters_own(self):
        through = {"pod": "dcgm-x", "namespace": "gpu-operator", "exported_namespace": "team"}
        text = of(
            row("DEV_GPU_UTIL", 90, **through, exported_pod="vllm-0"),
            row("DEV_GPU_UTIL", 10, gpu=1, **through, exported_pod="vllm-1"),
        )
        assert read(text, POD).utilisation == 0.9
        assert problem(text, PodId("gpu-operator", "dcgm-x"))[0] == "NoMatch"

    def test_labels_of_very_old_exporters(self):
        assert read(of(row("DEV_GPU_UTIL", 70, pod_name="vllm-0", pod_namespace="team")), POD).by_pod
        assert problem(of(row("DEV_GPU_UTIL", 70, pod_name="vllm-0", pod_namespace="b")))[0] == "NoMatch"

    def test_a_namesake_in_another_namespace_is_another_pod(self):
        text = of(mine("DEV_GPU_UTIL", 100, namespace="other"), mine("DEV_GPU_UTIL", 5, gpu=1))
        assert read(text, POD).utilisation == 0.05

    def test_a_former_pod_of_that_name_is_another_pod(self):
        assert problem(of(mine("DEV_GPU_UTIL", 1, pod_uid="uid-before")))[0] == "NoMatch"
        assert read(of(mine("DEV_GPU_UTIL", 1, pod_uid="uid-0")), POD).utilisation == 0.01

    @pytest.mark.parametrize("idle", [{}, {"pod": "", "namespace": "", "container": ""}])
    def test_idle_gpus_of_the_node_carry_no_pod_or_an_empty_one(self, idle):
        text = of(mine("PROF_GR_ENGINE_ACTIVE", 0.5), row("PROF_GR_ENGINE_ACTIVE", 0.0, gpu=1, **idle))
        assert (read(text, POD).devices, read(text, POD).utilisation) == (1, 0.5)

    def test_several_gpus_without_any_labels_are_not_guessed(self):
        kind, message = problem(of(row("DEV_GPU_UTIL", 1), row("DEV_GPU_UTIL", 1, gpu=1)))
        assert kind == "NoMatch"
        assert "DCGM_EXPORTER_KUBERNETES" in message


class TestDevices:
    def test_the_finer_field_goes_first(self):
        text = of(mine("DEV_GPU_UTIL", 100), mine("PROF_GR_ENGINE_ACTIVE", 0.25))
        assert read(text, POD).utilisation == 0.25
        assert read(of(mine("DEV_GPU_UTIL", 100)), POD).utilisation == 1.0

    def test_several_gpus_show_their_mean_and_their_least_and_sum_their_power(self):
        text = of(
            *(mine("PROF_GR_ENGINE_ACTIVE", value, gpu=gpu) for gpu, value in enumerate((1.0, 0.4))),
            *(mine("DEV_POWER_USAGE", value, gpu=gpu) for gpu, value in enumerate((300, 100))),
        )
        reading = read(text, POD)
        assert (reading.devices, reading.utilisation, reading.least_utilisation) == (2, 0.7, 0.4)
        assert (reading.busy_devices, reading.power_watts) == (1.4, 400)

    def test_a_time_sliced_gpu_is_divided_and_never_summed_over_pods(self):
        shares = [
            mine("DEV_GPU_UTIL", 80, vgpu="0"),
            mine("DEV_GPU_UTIL", 80, vgpu="1", pod="vllm-1"),
            mine("DEV_POWER_USAGE", 200, vgpu="0"),
            mine("DEV_POWER_USAGE", 200, vgpu="1", pod="vllm-1"),
        ]
        first, second = read(of(*shares), POD), read(of(*shares), PodId("team", "vllm-1"))
        assert first.utilisation == second.utilisation == 0.8
        assert first.busy_devices + second.busy_devices == 0.8
        assert first.power_watts + second.power_watts == 200

    def test_a_pod_with_two_shares_of_one_gpu_has_one_device(self):
        text = of(mine("DEV_GPU_UTIL", 80, vgpu="0"), mine("DEV_GPU_UTIL", 80, vgpu="1"))
        assert (read(text, POD).devices, read(text, POD).busy_devices) == (1, 0.8)

    def test_an_instance_has_its_own_activity_and_its_part_of_the_gpus_power(self):
        def instance(number, active, pod):
            mig = {"GPU_I_PROFILE": "3g.20gb", "GPU_I_ID": number, "pod": pod}
            return (
                mine("PROF_GR_ENGINE_ACTIVE", active, **mig),
                mine("DEV_GPU_UTIL", 100, **mig),
                mine("DEV_POWER_USAGE", 240, **mig),
            )

        text = of(*instance("1", 0.9, "vllm-0"), *instance("2", 0.1, "vllm-1"))
        reading = read(text, POD)
        assert (reading.devices, reading.utilisation, reading.power_watts) == (1, 0.9, 120)

    def test_utilisation_of_the_whole_gpu_says_nothing_of_an_instance(self):
        text = of(
            mine("DEV_GPU_UTIL", 100, GPU_I_ID="1"),
            mine("DEV_POWER_USAGE", 240, GPU_I_ID="1"),
        )
        assert read(text, POD).utilisation is None

    def test_the_worst_xid_of_the_pods_gpus_counts(self):
        text = of(
            mine("DEV_GPU_UTIL", 1), row("DEV_XID_ERRORS", 79), mine("DEV_XID_ERRORS", 0), row("DEV_XID_ERRORS", 31, gpu=5)
        )  # fmt: skip
        assert read(text, POD).xid == 79


class TestBadExpositions:
    @pytest.mark.parametrize("text", [b"", b"# HELP DCGM_FI_DEV_GPU_UTIL x\n", b"<html>", b"node_load1 3\n"])
    def test_without_rows(self, text):
        assert problem(text)[0] == "NoRows"

    def test_what_a_device_does_not_say_is_absent_and_not_a_number(self):
        text = of(
            mine("DEV_GPU_UTIL", 40),
            mine("PROF_GR_ENGINE_ACTIVE", "NaN"),
            mine("PROF_DRAM_ACTIVE", -1),
            mine("DEV_POWER_USAGE", 9223372036854775794),
        )
        reading = read(text, POD)
        assert (reading.utilisation, reading.dram_active, reading.power_watts) == (0.4, None, None)

    def test_a_broken_line_costs_that_line_alone(self):
        broken = b'DCGM_FI_DEV_GPU_UTIL{gpu="0",pod="vllm-0\nDCGM_FI_DEV_GPU_UTIL \nDCGM_FI_DEV_GPU_UTIL{} x\n\xff\n'
        assert read(broken + of(mine("DEV_GPU_UTIL", 40)), POD).utilisation == 0.4

    def test_rows_that_say_nothing_of_use(self):
        assert problem(of(mine("DEV_XID_ERRORS", 0)))[0] == "NoRows"

    def test_time_stamps_are_kept(self):
        assert read(of(mine("DEV_GPU_UTIL", 1, at=1_700_000_000_000)), POD).sampled_at == 1_700_000_000
