"""Trainings that end in the middle, as if the process were killed, and are resumed."""

import pytest

from kit import backups


class Killed(BaseException):
    """Stands for the end of the process."""


def interrupt(monkeypatch, after):
    """Ends a training after so many steps, as abruptly as a test can."""
    looks = []
    look = backups.Session.look

    def look_and_die(session):
        look(session)
        looks.append(session)
        if len(looks) == after:
            raise Killed

    monkeypatch.setattr(backups.Session, "look", look_and_die)


def back_up_each_step(monkeypatch):
    """Has recipes, which choose their interval themselves, back up each step."""
    init = backups.Session.__init__

    def often(session, files, interval, *args):
        init(session, files, 0, *args)

    monkeypatch.setattr(backups.Session, "__init__", often)


def check_resumed_run(main, folder, monkeypatch, interruptions, timed=(), **options):
    """Checks that an interrupted run of a recipe ends with the figures of another.

    Args:
        main: The recipe's `main`.
        folder: Folder for both runs.
        monkeypatch: pytest's fixture.
        interruptions: After how many steps of each attempt to interrupt.
        timed: Names of figures that depend on the machine.
        **options: Arguments of `main`.

    Returns:
        The folder and the contents of metrics.json, of the undisturbed run and of the
        other.
    """
    back_up_each_step(monkeypatch)
    folders = folder / "undisturbed", folder / "resumed"
    expected = main(output_dir=folders[0], **options)
    for i, after in enumerate(interruptions):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            interrupt(patch, after)
            main(output_dir=folders[1], resume=i > 0, **options)
    assert (folders[1] / "backups").is_dir()
    found = main(output_dir=folders[1], resume=True, **options)
    for part in ("metrics", "baselines", "config"):
        for name in found[part].keys() | expected[part].keys():
            if name not in timed:
                assert found[part][name] == expected[part][name], name
    assert not (folders[1] / "backups").exists()
    return list(zip(folders, (expected, found), strict=True))
