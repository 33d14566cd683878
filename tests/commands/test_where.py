"""`detr train` under launchers, in several processes, on several machines, and when signals arrive."""

import re
import signal

import psutil
import pytest
from launched_runs import ROOT, entries, launch, start_code, start_prepared, wait_for_log

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


def torchrun(output, *arguments):
    """Starts torchrun, which starts two processes as it does without a test."""
    options = ("--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
    code = "from torch.distributed.run import main; main()"
    return start_code(output, code, *options, ROOT / "scripts/train.py", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_to_every_process_saves_a_checkpoint(config, tmp_path, processes):
    """As a scheduler sends it that ends a job; torchrun is one of the processes, which forwards it once more."""
    run_dir = tmp_path / "run"
    options = (config, "--batch_size", 1, "--epochs", 200, "--num_workers", 1, "--preflight", "false")
    run = (start_prepared if processes == 1 else torchrun)(tmp_path / "printed", *options)
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


def start_on_two_machines(output, *arguments, output_dirs):
    """Starts two processes with a local rank of 0 each, like torchrun on two machines."""
    of_each = [("--output_dir", output_dir) for output_dir in output_dirs]
    run = start_prepared(output, *arguments, processes=2, machines=2, of_each=of_each)
    return run.communicate(timeout=120)[0], [process.exitcode for process in run.processes]


@pytest.mark.slow
def test_two_machines_train_one_run_in_a_shared_folder_and_separate_folders_are_an_error(config, tmp_path):
    shared = tmp_path / "run"
    options = (config, "--batch_size", 4, "--num_workers", 1, "--preflight", "false")
    printed, codes = start_on_two_machines(tmp_path / "first", *options, output_dirs=[shared, shared])
    assert codes == [0, 0], printed
    assert printed.count("2 processes,") == 1  # only one of them prints
    assert [entry["step"] for entry in entries(shared, "step")] == [1, 2]
    assert len(entries(shared, "epoch")) == 1
    assert len([*shared.glob("trackers/**/events.out.tfevents.*")]) == 1
    more = ("--epochs", 2, "--resume", "auto")
    folders = [shared, tmp_path / "not_shared"]
    printed, codes = start_on_two_machines(tmp_path / "second", *options, *more, output_dirs=folders)
    assert codes == [2, 2], printed
    assert printed.count("the processes see different checkpoints") == 2
    assert printed.count("output_dir must be a folder that all machines share") == 2
    assert [entry["step"] for entry in entries(shared, "step")] == [1, 2]
    assert not (tmp_path / "not_shared").exists()


@pytest.mark.slow
def test_two_processes_resume_at_the_step_where_one_stopped(config, tmp_path):
    """With as many images per step, each step of the epoch sees the same images."""
    options = ["--lr_schedule", "constant", "--learning_rate", "1e-3", "--epochs", "3", "--eval_every_epochs", "3"]
    options = (config, *options, "--preflight", "false")
    one = {
        name: start_prepared(
            *(tmp_path / f"{name}.txt", *options, "--batch_size", 4, "--max_steps", steps),
            *("--output_dir", tmp_path / name),
        )
        for name, steps in (("whole", 11), ("continued", 6))
    }
    for run in one.values():
        printed, _ = run.communicate(timeout=120)
        assert run.returncode == 0, printed
    two = ("--batch_size", 2, "--max_steps", 11, "--resume", "auto", "--output_dir", tmp_path / "continued")
    run = start_prepared(tmp_path / "two.txt", *options, *two, processes=2)
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
    options = (config, "--batch_size", 4, "--output_dir", tmp_path, "--preflight", "false")
    poison = "from poisoned_train import poison; poison(7)"
    run = start_prepared(tmp_path / "printed", *options, processes=2, before=poison)
    out, _ = run.communicate(timeout=120)
    assert run.returncode != 0
    (file,) = (tmp_path / "nonfinite").iterdir()
    assert len(re.findall(rf"Images: \S*/000007\.png\. Run the step again: detr train --replay {file}\.", out)) == 2
    assert train.main(["--replay", str(file)]) == 1


@pytest.mark.slow
def test_processes_end_with_a_launcher_that_is_killed_and_the_folder_is_locked_until_then(config, tmp_path):
    run_dir = tmp_path / "run"
    options = ("--batch_size", 1, "--epochs", 200, "--num_workers", 0, "--preflight", "false")
    run = torchrun(tmp_path / "torchrun.txt", config, *options)
    wait_for_log(run, run_dir)
    second = start_prepared(tmp_path / "printed", config, *options, "--resume", "auto")
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
