"""The CI examples of workflows/ci: least rights, pinned actions, secrets that stay secret. test_remotes.py
runs their commands.
"""

import re
import subprocess

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT

FILES = {
    name: YAML(typ="safe").load((ROOT / f"workflows/ci/{name}.yml").read_text(encoding="utf-8"))
    for name in ("github", "gitlab")
}
STEPS = FILES["github"]["jobs"]["results"]["steps"]
SCRIPTS = {
    "github": [step["run"] for step in STEPS if "run" in step],
    "gitlab": FILES["gitlab"]["results"]["script"],
}
INSTALLS = "pip install -r requirements.txt"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_commands_are_what_a_shell_reads(name):
    assert SCRIPTS[name][0] == INSTALLS
    assert subprocess.run(["bash", "-n"], input="\n".join(SCRIPTS[name]), text=True).returncode == 0


def test_least_rights_and_pinned_actions():
    job = FILES["github"]["jobs"]["results"]
    assert (FILES["github"]["permissions"], job["permissions"]) == (
        {},
        {"contents": "read", "pull-requests": "write"},
    )
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]) for step in STEPS if "uses" in step)


def test_nothing_of_others_is_pasted_into_a_command():
    """What somebody else wrote, such as the name of a branch, reaches a command as a variable; a secret only
    where it is used.
    """
    assert "${{" not in "".join(SCRIPTS["github"])
    secret = [
        name
        for step in STEPS
        for name, value in step.get("env", {}).items()
        if "secrets." in value or "token" in value
    ]
    assert secret == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GH_TOKEN"]
    assert not [
        line
        for text in [*SCRIPTS["github"], *SCRIPTS["gitlab"]]
        for line in text.splitlines()
        if re.search("echo .*(TOKEN|KEY)", line)
    ]
