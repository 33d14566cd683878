"""`detr train` under launchers, in several processes, on several machines, and when signals arrive."""

import re
import signal
import socket

import psutil
import pytest
from launched_runs import ROOT, entries, launch, wait_for_log

from modeling_detr.commands import train
from modeling_detr.training.checkpointing import find_damage


@pytest.mark.slow
def test_accelerate_launch_starts_all_requested_processes_and_fewer_is_an_error(config, tmp_path):
    """Without an accelerator it starts a single process, whatever was requested."""
    accelerate, folder = ["accelerate.commands.launch"], ROOT / "configs/accelerate"
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    runs = [
        launch(
            config,
            "--preflight",
            "false",
            "--output_dir",
            tmp_path / name,
            launcher=[*accelerate, *options],
            environment=environment,
        )
        for name, options in {
            "one": ["--config_file", folder / "cpu.yaml"],
            "fewer": ["--num_processes", "2"],
        }.items()
    ]
    (one, _), (fewer, _) = (run.communicate(timeout=120) for run in runs)
    assert runs[0].returncode == 0, one
    assert "1 process," in one
    assert runs[1].returncode != 0
    assert "asked for 2 processes, by --num_processes or its configuration, but started 1: this machine has 0" in fewer
    assert not (tmp_path / "fewer").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_to_every_process_saves_a_checkpoint(config, tmp_path, processes):
    run_dir = tmp_path / "run"
    options = ("--batch_size", 1, "--epochs", 200, "--num_workers", 1, "--preflight", "false")
    run = launch(config, *options, processes=processes)
    wait_for_log(run, run_dir)
    everyone = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    assert len(everyone) >= 2 * processes  # loaders too
    for process in everyone:
        process.send_signal(signal.SIGTERM)
    out, _ = run.communicate(timeout=60)
    assert "Stopped by SIGTERM" in out
    assert "DataLoader worker" not in out
    assert run.returncode == (143 if processes == 1 else 1), out  # torchrun has its own exit code
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    assert find_damage(checkpoint) is None
    assert entries(run_dir, "step")[-1]["step"] == int(checkpoint.name.removeprefix("step_"))
    assert not any(process.is_running() for process in everyone)


def launch_on_two_machines(*arguments, output_dirs):
    """Starts torchrun twice with one process each, which rendezvous like those of two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
    runs = [
        launch(
            *(*arguments, "--output_dir", output_dir),
            launcher=[*torchrun, f"--master_port={port}", f"--node_rank={rank}"],
        )
        for rank, output_dir in enumerate(output_dirs)
    ]
    return [(run.communicate(timeout=120)[0], run.returncode) for run in runs]


@pytest.mark.slow
def test_two_machines_train_one_run_in_a_shared_folder_and_separate_folders_are_an_error(config, tmp_path):
    shared = tmp_path / "run"
    options = (config, "--batch_size", 4, "--num_workers", 1, "--preflight", "false")
    first, second = launch_on_two_machines(*options, output_dirs=[shared, shared])
    assert (first[1], second[1]) == (0, 0), first[0] + second[0]
    assert "2 processes," in first[0]
    assert "2 processes," not in second[0]  # only one of them prints
    assert [entry["step"] for entry in entries(shared, "step")] == [1, 2]
    assert len(entries(shared, "epoch")) == 1
    assert len([*shared.glob("trackers/**/events.out.tfevents.*")]) == 1
    more = ("--epochs", 2, "--resume", "auto")
    ends = launch_on_two_machines(*options, *more, output_dirs=[shared, tmp_path / "not_shared"])
    for out, code in ends:
        assert code == 1, out
        assert "the processes see different checkpoints" in out
        assert "output_dir must be a folder that all machines share" in out
    assert [entry["step"] for entry in entries(shared, "step")] == [1, 2]
    assert not (tmp_path / "not_shared").exists()


@pytest.mark.slow
def test_two_processes_resume_at_the_step_where_one_stopped(config, tmp_path, monkeypatch):
    """With as many images per step, each step of the epoch sees the same images."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    options = ["--lr_schedule", "constant", "--learning_rate", "1e-3", "--epochs", "3", "--preflight", "false"]
    one = [str(config), *options, "--batch_size", "4"]
    for name, steps in (("whole", "11"), ("continued", "6")):
        assert train.main([*one, "--max_steps", steps, "--output_dir", str(tmp_path / name)]) == 0
    two = (config, *options, "--batch_size", "2", "--resume", "auto", "--output_dir", tmp_path / "continued")
    run = launch(*two, "--max_steps", "11", processes=2)
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 0, out
    assert "trained with 1 process so far, now with 2: each step sees the same images, so the run continues" in out
    whole, continued = (entries(tmp_path / name, "step") for name in ("whole", "continued"))
    assert [entry["step"] for entry in continued] == [*range(1, 12)]
    for expected, got in zip(whole[6:], continued[6:], strict=True):
        names = [name for name in expected if name.startswith(("loss", "grad", "epoch"))]
        assert {name: got[name] for name in names} == pytest.approx({name: expected[name] for name in names}, rel=2e-3)


@pytest.mark.slow
def test_two_processes_stop_together_and_the_one_with_the_bad_image_saves_it(config, tmp_path):
    run = launch(
        *(7, config, "--batch_size", 4, "--output_dir", tmp_path, "--preflight", "false"),
        processes=2,
        script="tests/poisoned_train.py",
    )
    out, _ = run.communicate(timeout=120)
    assert run.returncode != 0
    (file,) = (tmp_path / "nonfinite").iterdir()
    assert len(re.findall(rf"Images: \S*/000007\.png\. Run the step again: detr train --replay {file}\.", out)) == 2
    assert train.main(["--replay", str(file)]) == 1


@pytest.mark.slow
def test_processes_end_with_a_launcher_that_is_killed_and_the_folder_is_locked_until_then(config, tmp_path):
    run_dir = tmp_path / "run"
    options = ("--batch_size", 1, "--epochs", 200, "--num_workers", 0, "--preflight", "false")
    run = launch(config, *options, processes=2)
    wait_for_log(run, run_dir)
    second = launch(config, *options, "--resume", "auto")
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 2, out
    assert "is training in it; stop it, or choose another output_dir" in out
    ranks = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.communicate(timeout=60)
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert not alive
    newest = max((run_dir / "checkpoints").iterdir())
    assert find_damage(newest) is None
    assert entries(run_dir, "step")[-1]["step"] == int(newest.name.removeprefix("step_"))  # saved when they ended
