"""The trackers of experiments that people already use (training.trackers), by transformers' own callbacks.

They are shown what the curves and the log hold. Nothing depends on them: an edit of the list runs no stage
again, and what a run writes is the same with them and without.
"""

import os
from importlib.util import find_spec

from transformers import Trainer
from transformers.integrations import DVCLiveCallback, get_reporting_integration_callbacks

from stages.settings import manifest
from stages.settings.errors import Problem
from stages.settings.files import cache, read_json
from stages.settings.reader import read

PROJECT = "arabic-qwen"  # as trackers that keep several call it, unless the environment names another


def chosen() -> list[str]:
    """Raises Problem for one that is not installed."""
    trackers = read().training.trackers  # the whole file: what only shows is no dependency
    for tracker in trackers:
        if not find_spec(tracker):
            raise Problem(f"training.trackers has {tracker}, which is not installed: pip install {tracker}")
    return trackers


def track(trainer: Trainer, run: str) -> None:
    """Show a run to the chosen trackers under its name. They log the configuration, too: without this
    machine's paths.
    """
    trackers = chosen()
    if not trackers:
        return
    folder = os.path.relpath(cache("trackers") / run.replace(" ", "-"))
    own = {
        "TENSORBOARD_LOGGING_DIR": folder,
        "WANDB_DIR": os.path.dirname(folder),
        "WANDB_PROJECT": PROJECT,
        "WANDB_X_DISABLE_META": "true",  # the program's path, the machine's name
        "WANDB_DISABLE_GIT": "true",  # the remote's address
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
    }
    for name, value in own.items():
        os.environ.setdefault(name, value)
    base = read_json(manifest.MANIFEST)
    for adapter in getattr(trainer.model, "peft_config", {}).values():
        adapter.base_model_name_or_path = base.get("repo") or base["path"]
    trainer.args.run_name, trainer.args.project = run, PROJECT
    for tracker, callback in zip(trackers, get_reporting_integration_callbacks(trackers)):
        trainer.add_callback(live(folder) if tracker == "dvclive" else callback)


def live(folder: str) -> DVCLiveCallback:
    """DVCLive beside the pipeline: left to itself it adds its plots to dvc.yaml and makes an experiment."""
    from dvclive import Live

    return DVCLiveCallback(live=Live(folder, dvcyaml=None, save_dvc_exp=False, report=None))
