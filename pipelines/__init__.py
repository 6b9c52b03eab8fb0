"""The Kubeflow pipelines: the stages as graphs, and the ways to run them."""

# Name -> the module with its click command, `<name>_command`, and its line in `mdpr pipeline --help`.
COMMANDS: dict[str, tuple[str, str]] = {
    "compile": ("compile", "Write the pipelines as YAML for the Kubeflow UI, or check that the files are current."),
    "run": ("run", "Run a whole pipeline on this machine, tasks as processes or as containers."),
    "submit": ("submit", "Start a run on a cluster, and follow it."),
    "schedule": ("submit", "Start runs on a cluster again and again, by a cron expression."),
    "fetch": ("fetch", "Bring the outputs of a run into the DVC workspace of the working folder."),
    "trainjob": ("trainjob", "Print the manifest that tunes on several nodes, for Kubeflow Trainer."),
}
