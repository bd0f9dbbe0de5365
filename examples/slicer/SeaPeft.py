"""A module of 3D Slicer: predicts the shown scan by `seapeft predict` and loads the masks.

It was written after Slicer's documentation, and never run inside Slicer. What needs no Slicer is in
`SeaPeftLib`, and tested.
"""

import shutil
import tempfile
from pathlib import Path

import ctk
import qt
import slicer
from SeaPeftLib.prediction import NOTE, CannotStart, Prediction, command, new_folder
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)

_POLL_MILLISECONDS = 500
_COLUMNS = ["Label", "Expected Dice", "95% interval", "Volume"]


class SeaPeft(ScriptedLoadableModule):
    """What Slicer lists."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "SEA-PEFT"
        self.parent.categories = ["Segmentation"]
        self.parent.contributors = ["The sea_peft authors"]
        self.parent.helpText = (
            "Masks of a scan by an adapter of sea_peft, which is installed outside of Slicer."
            f" {NOTE}"
        )


class SeaPeftWidget(ScriptedLoadableModuleWidget):
    """The panel. Paths are remembered in Slicer's settings."""

    def setup(self):
        """Called once, when the module is first opened."""
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = SeaPeftLogic()
        asked = self._section("Prediction", qt.QFormLayout)
        file, folder = ctk.ctkPathLineEdit.Files, ctk.ctkPathLineEdit.Dirs
        self.programPath = self._path("Program", file, "The program seapeft, as .venv/bin/seapeft")
        self.runPath = self._path("Run", folder, "The run folder, or the adapter folder in it")
        self.weightsPath = self._path("Weights", file, "Only if the adapter's are not installed")
        self.outPath = self._path("Out", folder, "Each prediction gets a folder of its own in here")
        self.scan = slicer.qMRMLNodeComboBox()
        self.scan.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.scan.addEnabled = self.scan.removeEnabled = self.scan.renameEnabled = False
        self.scan.setMRMLScene(slicer.mrmlScene)
        self.qc = qt.QCheckBox()
        self.qc.checked = True
        for name, widget in (
            ("Program:", self.programPath),
            ("Run:", self.runPath),
            ("Weights (optional):", self.weightsPath),
            ("Results in:", self.outPath),
            ("Scan:", self.scan),
            ("Expected Dice and flags:", self.qc),
        ):
            asked.addRow(name, widget)
        self.apply, self.cancel = qt.QPushButton("Predict"), qt.QPushButton("Cancel")
        self.cancel.enabled = False
        asked.addRow(self.apply)
        asked.addRow(self.cancel)
        found = self._section("Result", qt.QVBoxLayout)
        self.said, self.remarks = qt.QLabel(NOTE), qt.QPlainTextEdit()
        self.said.wordWrap = self.remarks.readOnly = True
        self.table = qt.QTableWidget(0, len(_COLUMNS))
        self.table.setHorizontalHeaderLabels(_COLUMNS)
        for widget in (self.said, self.table, self.remarks):
            found.addWidget(widget)
        self.layout.addStretch(1)
        self.timer = qt.QTimer()
        self.timer.setInterval(_POLL_MILLISECONDS)
        self.timer.connect("timeout()", self.onTimer)
        self.apply.connect("clicked(bool)", self.onApply)
        self.cancel.connect("clicked(bool)", self.onCancel)

    def cleanup(self):
        """Called when Slicer closes."""
        self.timer.stop()
        self.logic.abandon()

    def onApply(self, _clicked=False):
        """Start a prediction."""
        self._show("Starting …")
        for path in (self.programPath, self.runPath, self.weightsPath, self.outPath):
            path.addCurrentPathToHistory()
        try:
            self.logic.start(
                self.scan.currentNode(),
                self.programPath.currentPath,
                self.runPath.currentPath,
                self.outPath.currentPath,
                self.weightsPath.currentPath,
                self.qc.checked,
            )
        except CannotStart as error:
            self._show(str(error))
            return
        self._at_work(True)

    def onCancel(self, _clicked=False):
        """Ask the prediction to end."""
        self.logic.prediction.cancel()

    def onTimer(self):
        """Say how far it is, or show what became of it."""
        if self.logic.prediction.running():
            self.said.text = self.logic.prediction.progress() or "Starting …"
            return
        self._at_work(False)
        try:
            outcome = self.logic.finish()
        except RuntimeError as error:
            self._show(f"The mask is done, but Slicer cannot load it ({error}).")
            return
        self._show(f"{outcome.sentence} {NOTE}", outcome.labels, outcome.remarks())

    def _at_work(self, working):
        self.apply.enabled, self.cancel.enabled = not working, working
        if working:
            self.timer.start()
        else:
            self.timer.stop()

    def _show(self, sentence, labels=(), remarks=()):
        self.said.text = sentence
        self.remarks.plainText = "\n".join(remarks)
        self.table.setRowCount(len(labels))
        for row, label in enumerate(labels):
            for column, text in enumerate(label.cells()):
                self.table.setItem(row, column, qt.QTableWidgetItem(text))

    def _section(self, title, kind):
        section = ctk.ctkCollapsibleButton()
        section.text = title
        self.layout.addWidget(section)
        return kind(section)

    def _path(self, key, filters, hint):
        path = ctk.ctkPathLineEdit()
        path.filters, path.toolTip = filters, hint
        path.settingKey = f"SeaPeft/{key}"  # under which Slicer remembers the last paths
        return path


class SeaPeftLogic(ScriptedLoadableModuleLogic):
    """Takes a scan out of Slicer's scene and masks into it; `SeaPeftLib` does the rest."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self.prediction = None
        self._work = self._scan = None

    def start(self, scan, program, run, out, weights="", qc=True):
        """Begin to predict a scalar volume. Raises CannotStart."""
        for given, what in (
            (scan, "scan"),
            (program, "program"),
            (run, "run folder"),
            (out, "folder for the results"),
        ):
            if not given:
                raise CannotStart(f"Choose the {what} first.")
        self._work, self._scan = (
            tempfile.mkdtemp(prefix="seapeft-"),
            scan,
        )  # readable by its owner only
        try:
            file = str(Path(self._work) / "scan.nrrd")
            self._write(scan, file)
            asked = command(program, run, file, new_folder(out), weights=weights, qc=qc)
            self.prediction = Prediction(asked, self._work, slicer.util.startupEnvironment())
        except BaseException:
            self._clear()
            raise

    def finish(self):
        """Load the masks of a prediction that has ended, and say what became of it."""
        try:
            outcome = self.prediction.outcome()
            if outcome.segmentation is not None:
                self._load(str(outcome.segmentation))
            return outcome
        finally:
            self._clear()

    def abandon(self):
        """End the prediction that is under way, if there is one."""
        if self.prediction is not None:
            self.prediction.cancel()
            self.prediction.outcome()
            self._clear()

    def _write(self, scan, file):
        storage = slicer.mrmlScene.CreateNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
        storage.SetFileName(file)
        written = storage.WriteData(scan)
        storage.UnRegister(None)
        if not written:
            raise CannotStart(f"Slicer cannot write {scan.GetName()} as NRRD.")

    def _load(self, file):
        segmentation = slicer.util.loadSegmentation(file)
        segmentation.SetName(f"{self._scan.GetName()} SEA-PEFT")
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(self._scan)
        segmentation.SetAndObserveTransformNodeID(self._scan.GetTransformNodeID())
        segmentation.CreateClosedSurfaceRepresentation()

    def _clear(self):
        shutil.rmtree(self._work, ignore_errors=True)
        self.prediction = self._work = self._scan = None
