"""The files of a run: trace, result, adapter and report, and the view of them in MLflow."""
