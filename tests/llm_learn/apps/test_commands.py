"""The commands as a shell starts them: they work, and no module is loaded twice."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import llm_learn
from llm_learn.apps.pipeline_stages import Plan

PACKAGE = Path(llm_learn.__file__).parent
# Python imports it on its own; at the end of a process it writes which files of the package were loaded as modules,
# `__main__` among them, and which classes of these names there are.
SITECUSTOMIZE = """
import atexit, gc, json, os, sys
from pathlib import Path


def note():
    modules = {id(module): module for module in sys.modules.values()}  # one may have two names
    files = [getattr(module, "__file__", None) or "" for module in modules.values()]
    files = sorted(f for f in files if f.startswith(os.environ["PROBED_PACKAGE"]))
    names = ("Plan", "DistributedContext", "TrainConfig", "TrainingRun")
    classes = [c.__name__ for c in gc.get_objects() if isinstance(c, type)]
    found = {"files": files, "classes": sorted(c for c in classes if c in names)}
    if files:
        Path(os.environ["PROBE_ANSWERS"], f"{os.getpid()}.json").write_text(json.dumps(found))


atexit.register(note)
"""
TRAIN = {
    "context_length": 8, "d_model": 16, "num_layers": 1, "num_heads": 2, "max_steps": 2, "batch_size": 4,
    "warmup_steps": 1, "eval_ids": 60,
}  # fmt: skip
PIPELINE = {field.name: 2 for field in fields(Plan) if field.type is int}
PIPELINE |= {"num_words": 300, "vocab_size": 400, "context_length": 64, "num_heads": 2}
PIPELINE |= {"d_model": 32, "student_d_model": 32}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def answers(tmp_path: Path, launch: tuple[str, ...], module: str, options: dict) -> list:
    """Runs a command in a new folder; what each of its processes has noted."""
    (tmp_path / "site").mkdir()
    (tmp_path / "answers").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    flags = ["--out", str(tmp_path / "run")]
    for name, value in options.items():
        flags += [f"--{name.replace('_', '-')}", str(value)]
    paths = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(PACKAGE.parent)]),
        "PROBED_PACKAGE": str(PACKAGE),
        "PROBE_ANSWERS": str(tmp_path / "answers"),
    }
    done = subprocess.run(
        [sys.executable, *launch, "-m", module, *flags],
        env=os.environ | paths,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (tmp_path / "answers").iterdir()
    ]


@pytest.mark.parametrize(
    ("launch", "processes"),
    [((), 1), pytest.param(TORCHRUN, 2, marks=pytest.mark.slow)],
)
def test_training_runs_and_loads_each_module_once(tmp_path, launch, processes):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 40, encoding="utf-8")
    found = answers(tmp_path, launch, "llm_learn.train", TRAIN | {"text": text})
    assert (tmp_path / "run" / "step-00000002").is_dir()
    assert len(found) == processes
    for process in found:
        assert str(PACKAGE / "train" / "__main__.py") in process["files"]
        assert len({*process["files"]}) == len(process["files"])
        assert process["classes"] == ["DistributedContext", "TrainConfig", "TrainingRun"]


@pytest.mark.slow
def test_the_pipeline_runs_and_loads_each_module_once(tmp_path):
    (found,) = answers(tmp_path, (), "llm_learn.pipeline", PIPELINE)
    assert (tmp_path / "run" / "report.json").is_file()
    assert str(PACKAGE / "pipeline" / "__main__.py") in found["files"]
    assert len({*found["files"]}) == len(found["files"])
    assert found["classes"] == ["DistributedContext", "Plan", "TrainConfig"]
