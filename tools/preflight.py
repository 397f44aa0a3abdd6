"""What must be so before anything is installed, said in a second. `make repro` runs it with the Python it is
given, whatever that is: a standard library is all it needs.
"""

import shutil
import subprocess
import sys


def problem() -> str:
    """What is wrong and its cure, in one line; nothing where all is well."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        version = ".".join(map(str, sys.version_info[:2]))
        return (
            f"Python {version} at {sys.executable}: give one of 3.11 to 3.13, as make repro PYTHON=python3.12"
        )
    if sys.platform == "win32":
        return "Windows: run this in WSL2 (https://learn.microsoft.com/windows/wsl/install)"
    if not shutil.which("git"):
        return "git is not installed, and DVC ties every result to a commit"
    asked = subprocess.run(["git", "rev-parse", "--show-prefix"], capture_output=True, text=True)
    if "dubious ownership" in asked.stderr:
        return 'another user owns this folder: git config --global --add safe.directory "$PWD"'
    if asked.returncode or asked.stdout.strip():
        return "no git repository (a ZIP?): git clone it, since DVC ties every result to a commit"
    return ""


if __name__ == "__main__":
    found = problem()
    sys.exit(f"error: {found}" if found else 0)
