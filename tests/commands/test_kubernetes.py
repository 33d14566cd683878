"""`detr train` in the pods of a PyTorchJob: the environment that Kubeflow's operator sets, and the manifest."""

import os

import pytest
import yaml
from launched_runs import DETR, RECIPE, ROOT, entries, start_code

from modeling_detr.commands.launching import complete_environment
from modeling_detr.errors_detr import LaunchError
from modeling_detr.listening import listen
from modeling_detr.training.recipe_parsing import parse_recipe


def environment_of(pod, port, pods=2, processes_per_pod=1):
    """What the operator (kubeflow/training-operator 1.9) adds to the environment of a pod."""
    return {
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": "localhost",  # detr-master-0, the name of a service
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(pods * processes_per_pod),
        "RANK": str(pod),
        "PET_MASTER_ADDR": "localhost",
        "PET_MASTER_PORT": str(port),
        "PET_NNODES": str(pods),
        "PET_NODE_RANK": str(pod),
        "PET_NPROC_PER_NODE": str(processes_per_pod),
    }


@pytest.fixture
def in_pod(monkeypatch):
    """Returns a function that sets the environment of a pod."""

    def set_environment(**options):
        for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_CPU", *environment_of(0, 1)):
            monkeypatch.setenv(name, "")  # so that what the test sets is undone
            monkeypatch.delenv(name)
        os.environ |= environment_of(1, 23456, **options)

    return set_environment


def test_a_process_that_is_alone_in_its_pod_gets_a_local_rank(in_pod):
    in_pod()
    complete_environment()
    assert (os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]) == ("0", "1")


def test_several_processes_of_a_pod_need_torchrun(in_pod):
    in_pod(processes_per_pod=4)
    with pytest.raises(LaunchError, match=r"WORLD_SIZE: is 8 on 2 pods, .*nprocPerNode to 1, .*torchrun -m modeling"):
        complete_environment()


def test_the_manifest_starts_a_run_in_each_pod_that_resumes_and_shares_its_folder():
    job = yaml.safe_load((ROOT / "docs/cluster/pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert {name: one["replicas"] for name, one in replicas.items()} == {"Master": 1, "Worker": 1}
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    template = replicas["Master"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["name"] == "pytorch"
    program, command, *arguments = [*container["command"], *container["args"]]
    assert (program, command) == ("detr", "train")
    recipe = parse_recipe(arguments)
    assert recipe.resume == "auto"
    assert str(recipe.metrics_port) == template["metadata"]["annotations"]["prometheus.io/port"]
    mounted = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    assert {one["name"] for one in template["spec"]["volumes"]} == {*mounted.values()}
    assert {"/data", "/runs", "/dev/shm"} == mounted.keys()
    assert recipe.output_dir.startswith("/runs/")


@pytest.mark.slow
def test_two_pods_train_one_run_and_their_lines_say_which_is_which(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    frozen = "  freeze_batch_norm: false\n  freeze_backbone_stem: false\n"
    recipe.write_text(RECIPE.replace("model_config:\n", f"model_config:\n{frozen}"))
    with listen("localhost", 0) as listener:
        port = listener.getsockname()[1]
    command = ["train", recipe, "--output_dir", tmp_path / "run", "--resume", "auto"]
    pods = [
        start_code(
            tmp_path / f"pod_{pod}",
            f"import os; del os.environ['ACCELERATE_USE_CPU']\n{DETR}",  # the command sets it itself
            *command,
            environment=environment_of(pod, port),
        )
        for pod in range(2)
    ]
    outputs = [pod.communicate(timeout=280)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], outputs
    assert "2 processes" in outputs[0]
    assert len(entries(tmp_path / "run", "epoch")) == 1
    assert not [line for line in outputs[0].splitlines() if line.startswith("[rank")]
    assert all(line.startswith("[rank1]: ") for line in outputs[1].splitlines() if line)
