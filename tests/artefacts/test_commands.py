"""Commands run as printed on the user's terminal, and carry no paths in a report."""

from __future__ import annotations

import shlex

from sea_peft.artefacts.commands import Commands

TYPED = {
    "data": "my scans/ct",
    "labels": ["liver", "tumour=2,3"],
    "channels": [],
    "shots": 5,
    "budget": "1%",
    "profile": "default",
    "policy": "sea",
    "steps": None,
    "patch": [48, 48, 32],
    "time_limit": 90.0,
    "weights": "in/net.safetensors",
    "backbone": None,
    "seed": 0,
    "test": None,
    "split": None,
    "runs": "runs",
    "log_images": False,
    "out": "out/here",
    "mlflow": False,
}


def test_the_run_once_more_with_another_option():
    words = shlex.split(Commands.of(TYPED, "out/here").adapt(policy="affine_lora", test="cv"))
    assert words[:3] == ["seapeft", "adapt", "my scans/ct"]
    assert words[3:] == [
        *(
            "--weights",
            "in/net.safetensors",
            "--label",
            "liver",
            "--label",
            "tumour=2,3",
            "--shots",
            "5",
            "--test",
            "cv",
        ),
        *(
            "--budget",
            "1%",
            "--policy",
            "affine_lora",
            "--patch",
            "48,48,32",
            "--time-limit",
            "90s",
        ),
    ]


def test_a_report_names_no_places():
    commands = Commands.of(TYPED)
    said = " ".join(
        [commands.adapt(), commands.predict("adapted"), commands.evaluate, commands.pictures]
    )
    assert "scans" not in said
    assert "in/" not in said
    assert "out/" not in said
    assert commands.adapt().startswith("seapeft adapt DATA --weights WEIGHTS")
    assert commands.predict() == "seapeft predict RUN SCANS --out masks --weights WEIGHTS"


def test_a_factory_is_given_again_because_it_is_code():
    options = {**TYPED, "weights": None, "backbone": "my_net:build"}
    commands = Commands.of(options, "runs/a b", "my_net:build")
    assert (
        commands.predict() == "seapeft predict 'runs/a b' SCANS --out masks --backbone my_net:build"
    )
    assert "--backbone my_net:build" in commands.adapt()
    for others in (
        Commands.of(options, "runs/1", "mine:net"),
        Commands.of(options),
    ):  # as a file has it, and nobody typed it
        assert "my_net" not in others.adapt() + others.predict() + others.evaluate + others.pictures
        assert others.predict().endswith(" --backbone MODULE:FACTORY")
    named = Commands.of({**options, "backbone": "unet"}, "runs/1")
    assert named.predict() == "seapeft predict runs/1 SCANS --out masks"


def test_an_embedded_target_keeps_its_name():
    assert Commands.of({"data": "phantom:mr-t1"}).adapt() == "seapeft adapt phantom:mr-t1"
    assert Commands().adapt(steps=20) == "seapeft adapt … --steps 20"
