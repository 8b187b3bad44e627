"""The launchers: sound shell, valid manifests, and one way into the program."""

import pathlib
import shutil
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
MANIFESTS = sorted(LAUNCH.glob("*.yaml"))
RUN = 'python -m dinov2_jax "$@"'

# What a JobSet takes, from its reference of v1alpha2.
FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        *("coordinator", "failurePolicy", "managedBy", "network", "replicatedJobs"),
        *("startupPolicy", "successPolicy", "suspend", "ttlSecondsAfterFinished"),
    },
    "spec.failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "spec.network": {"enableDNSHostnames", "publishNotReadyAddresses", "subdomain"},
    "spec.replicatedJobs": {"dependsOn", "groupName", "name", "replicas", "template"},
}


def name(path: pathlib.Path) -> str:
    """For the test's name."""
    return path.name


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_script_ends_in_the_program(script):
    last = script.read_text().rstrip().splitlines()[-1]
    assert last.endswith(RUN) and last.count("dinov2_jax") == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_script_is_sound(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ["shellcheck", str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def read(manifest: pathlib.Path) -> dict:
    """The one document of a manifest."""
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(manifest.read_text())


@pytest.mark.parametrize("manifest", MANIFESTS, ids=name)
def test_a_manifest_is_a_jobset_of_one_job(manifest):
    found = read(manifest)
    assert (found["apiVersion"], found["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    (job,) = found["spec"]["replicatedJobs"]
    parts = {"": found, "spec": found["spec"], "spec.replicatedJobs": job}
    for key in ("failurePolicy", "network"):
        parts[f"spec.{key}"] = found["spec"].get(key, {})
    for part, fields in parts.items():
        assert fields.keys() <= FIELDS[part], part
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][-2].endswith(RUN)
    assert container["args"][0] == "train"


@pytest.mark.compiler
@pytest.mark.parametrize("manifest", MANIFESTS, ids=name)
def test_the_job_of_a_manifest_is_valid(manifest):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    (job,) = read(manifest)["spec"]["replicatedJobs"]
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(whole | job["template"], version, strict=True)


def test_processes_of_the_gpu_manifest_are_as_many_as_it_says():
    (job,) = read(LAUNCH / "gke_gpu.yaml")["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    told = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert int(told["DINOV2_JAX_PROCESSES"]) == spec["completions"]
    assert spec["completions"] == spec["parallelism"]
    host = told["DINOV2_JAX_COORDINATOR"].partition(":")[0]
    assert host == f"dinov2-{job['name']}-0-0.dinov2"
