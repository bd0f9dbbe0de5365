"""What a run leaves behind: trace, result, adapter, report, and the view of them in MLflow."""
