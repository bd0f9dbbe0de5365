"""A registered adapter as MLflow's `python_function`:
`mlflow.pyfunc.load_model("models:/sea_peft_adapter/1")`, without pickles.

MLflow finds this module by its name in the file `MLmodel` beside the adapter
(`sea_peft.artefacts.tracker`), and calls `_load_pyfunc`.
"""

from pathlib import Path

import pandas


class AdapterModel:
    """Masks for scans on disk, as `seapeft predict` makes them. The backbone's weights must be
    installed under the adapter's name for them.
    """

    def __init__(self, adapter: Path) -> None:
        self._adapter = adapter

    def predict(self, model_input: pandas.DataFrame) -> pandas.DataFrame:
        """Write a mask for each scan.

        Args:
            model_input: a data frame with columns `scan`, a path, and `out`, the folder for its
                mask. There is no default for these, since no file should decide where masks go.

        Returns:
            A data frame with a row for each case: case, status, mask (path), error, and the
                millilitres of each label.

        Raises:
            SeaPeftError: as `sea_peft.jobs.predict.predict`.
        """
        from sea_peft.jobs.predict import predict

        rows = []
        for out, asked in model_input.groupby("out", sort=False):
            for done in predict(self._adapter, [Path(scan) for scan in asked["scan"]], Path(out)):
                mask = str(Path(out) / done.mask) if done.mask else None
                rows.append(
                    {
                        "case": done.case,
                        "status": done.status,
                        "mask": mask,
                        "error": done.error,
                        **done.volumes,
                    }
                )
        return pandas.DataFrame(rows)


def _load_pyfunc(path: str) -> AdapterModel:
    """Called by MLflow. `path`: the folder that holds `MLmodel` and the adapter's files."""
    return AdapterModel(Path(path))
