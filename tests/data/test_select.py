import pytest

from sea_peft.data.cases import Dataset
from sea_peft.data.select import select
from sea_peft.errors import DataError


def dataset(**changes):
    given = {
        "name": "toy", "layout": "folders", "channels": ("FLAIR", "T1c"),
        "labels": {"necrosis": (1,), "edema": (2,), "enhancing": (4,)}, "cases": (),
        "codes": frozenset({1, 2, 4}),
    }  # fmt: skip
    return Dataset(**(given | changes))


def test_default_is_everything_declared():
    chosen = select(dataset())
    assert dict(chosen.labels) == {"necrosis": (1,), "edema": (2,), "enhancing": (4,)}
    assert chosen.channels == ("FLAIR", "T1c")


def test_names_groups_and_order():
    chosen = select(dataset(), ["tumour=1,2,4"], ["t1ce", "Flair"])
    assert dict(chosen.labels) == {"tumour": (1, 2, 4)}
    assert chosen.channels == ("T1c", "FLAIR")
    chosen = select(dataset(), ["Edema", "core = necrosis, 4"])
    assert dict(chosen.labels) == {"edema": (2,), "core": (1, 4)}
    assert list(chosen.labels) == ["edema", "core"]


def test_codes_of_a_layout_that_declares_none():
    chosen = select(dataset(labels={"label_1": (1,)}, codes=None), ["nodule=1", "cyst=7"])
    assert dict(chosen.labels) == {"nodule": (1,), "cyst": (7,)}


@pytest.mark.parametrize(
    ("labels", "channels", "sentence"),
    [
        (
            ["edma"],
            [],
            "no label 'edma'; did you mean 'edema'\\? it has necrosis=1, edema=2, enhancing=4",
        ),
        (["liver"], [], "no label 'liver'; it has necrosis=1"),
        (["background"], [], "no label 'background'"),
        (["x=3"], [], "code 3 is not declared; there are necrosis=1"),
        (["x=0,1"], [], "code 0, which is the background"),
        (["x=70000"], [], "code 70000 is too large|code 70000 is not declared"),
        (["x="], [], "must be NAME or NAME=1,2,4"),
        (["=1"], [], "must be NAME"),
        (["x=1.5"], [], "no label '1.5'"),
        (["edema", "edema"], [], "one name twice"),
        (["whole=1,2,4", "core=1,4"], [], "whole and core overlap .both hold code 1, 4."),
        ([], ["T2"], "no channel 'T2'.* it has FLAIR, T1c"),
        ([], ["flar"], "no channel 'flar'; did you mean 'FLAIR'"),
        ([], ["FLAIR", "t2f"], "channel FLAIR is asked for twice"),
    ],
)
def test_wrong_words_are_refused(labels, channels, sentence):
    with pytest.raises(DataError, match=sentence):
        select(dataset(), labels, channels)


def test_nested_regions_cannot_be_the_default():
    with pytest.raises(DataError, match=r"overlap .*choose whole or core"):
        select(dataset(labels={"whole": (1, 2), "core": (2,)}))
    assert dict(select(dataset(labels={"whole": (1, 2), "core": (2,)}), ["whole"]).labels) == {
        "whole": (1, 2)
    }


def test_nothing_labelled():
    with pytest.raises(DataError, match="every label map is empty"):
        select(dataset(labels={}))
