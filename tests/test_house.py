"""The house rules that a program can check: targets, imports, file sizes, no machine paths."""

import ast
import configparser
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "callbacks", "datamodules", "experiments", "lightning_modules", "losses", "tests")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TEXTS = sorted(
    path
    for path in [
        *SOURCES,
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "experiments").rglob("*.yaml"),
        *(ROOT / "experiments").rglob("*.sbatch"),
        *(ROOT / name for name in ("Makefile", "setup.cfg", "pyproject.toml", "requirements.lock", ".ci/run")),
    ]
    if path.is_file()
)
MAY_IMPORT = {
    "datamodules": {"datamodules"},
    "losses": {"losses"},
    "lightning_modules": {"datamodules", "losses", "lightning_modules"},
    "callbacks": {"datamodules", "losses", "lightning_modules", "callbacks"},
}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|Users|opt|mnt|scratch)/|file:///|\b[A-Z]:\\\\")

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as from a fresh shell: nothing of an outer make, no variable of ours set outside."""
    ours = {
        "EXP",
        "SET",
        "RESUME",
        "INIT",
        "TINY",
        "CKPT",
        "DATA",
        "IN",
        "OUT",
        "SCALE",
        "BENCH",
        "ARGS",
        "RUNS",
        "PORT",
        "STUDY",
        "STORAGE",
        "SEEDS",
        "RETRY",
        "WORKERS",
        "FORMAT",
        "HALF",
        "RAW",
        "CONFIG",
        "ENGINE",
        "SHARD_MB",
        "JOBS",
    }
    outer = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "PYTHON"}
    clean = {key: value for key, value in os.environ.items() if key not in ours | outer}
    command = ["make", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60, check=False)


def shell_words(command: str) -> list[str]:
    """The words of a command as the shell that make calls splits them."""
    script = f"set -- {command}\nprintf '%s\\n' \"$@\""
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()


def targets() -> set[str]:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(phony.split())


@needs_make
def test_help_is_the_default_and_explains_every_target() -> None:
    done = make()
    explained = {line.split()[0] for line in done.stdout.splitlines() if re.match(r"  [a-z-]+ +[A-Z]", line)}
    assert done.returncode == 0
    assert explained == targets()


def test_every_rule_is_declared_phony() -> None:
    rules = set(re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert rules == targets()


@pytest.mark.parametrize("path", [p for p in TEXTS if p.name != "Makefile"], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_target_that_a_text_names_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    quoted = re.findall(r"`make ([a-z][a-z-]*)", text)
    shown = re.findall(r"^ *(?:\$ )?make ([a-z][a-z-]*)", text, re.MULTILINE) if path.suffix == ".md" else []
    assert set(quoted + shown) <= targets()


@needs_make
@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["train"], "EXP"),
        (["train", "EXP="], "EXP"),
        (["train", "SET=seed=1"], "EXP"),
        (["evaluate", "DATA=bundled"], "CKPT"),
        (["evaluate", "CKPT=a.ckpt"], "DATA"),
        (["upscale", "IN=a.png", "OUT=b.png"], "CKPT"),
        (["upscale", "CKPT=a.ckpt", "OUT=b.png"], "IN"),
        (["upscale", "CKPT=a.ckpt", "IN=a.png"], "OUT"),
        (["bench"], "BENCH"),
        (["study", "WORKERS=2"], "STUDY"),
        (["export", "FORMAT=onnx"], "CKPT"),
        (["curate", "RAW=a"], "OUT"),
        (["shards", "OUT=b"], "IN"),
        (["shards-check"], "IN"),
    ],
)
def test_a_missing_variable_gives_one_sentence_with_an_example(arguments: list[str], missing: str) -> None:
    done = make(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.search(rf"make {arguments[0]} needs {missing}=, for example: make {arguments[0]} .*\b[A-Z]+=\S", line)


@needs_make
def test_variables_reach_the_program_as_they_were_written() -> None:
    values = ["EXP=my runs/it's.yaml", "SET=codec.widths=[8,16] name=${data.train} seed=1", "RESUME=a b.ckpt", "TINY=1"]
    done = make("-n", "-o", "install", "train", *values)
    words = shell_words(done.stdout.split("experiments.train", 1)[1])
    assert words == [
        "my runs/it's.yaml",
        "codec.widths=[8,16]",
        "name=${data.train}",
        "seed=1",
        "--resume",
        "a b.ckpt",
        "--tiny",
    ]


@needs_make
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "EXP=no/such", "SET=seed=1", "INIT=a.ckpt", "TINY=1"], "EXP=no/such: no such experiment"),
        (["upscale", "CKPT=a.ckpt", "IN=no such.png", "OUT=b.png", "SCALE=4", "SET=seed=1"], "no such.png"),
        (["evaluate", "CKPT=no such.ckpt", "DATA=bundled", "OUT=b", "SET=seed=1"], "CKPT=no such.ckpt: no such file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_program_understands_the_command_and_refuses_the_input(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = importlib.import_module(f"experiments.{arguments[0]}")
    words = shell_words(make("-n", "-o", "install", *arguments).stdout)
    assert words[1:3] == ["-m", program.__name__]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words[2:])
    with pytest.raises(SystemExit) as ended:
        program.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("error: "), said
    assert message in said


@needs_make
@pytest.mark.parametrize("value", ["", "0", "no"])
def test_a_switch_can_be_off(value: str) -> None:
    assert "--tiny" not in make("-n", "-o", "install", "train", "EXP=a", f"TINY={value}").stdout


def imported(path: Path) -> set[str]:
    """First parts of the absolute names that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_one_way(folder: str) -> None:
    ours = set(FOLDERS)
    wrong = {
        str(path.relative_to(ROOT)): sorted(names)
        for path in (ROOT / folder).rglob("*.py")
        if (names := imported(path) & ours - MAY_IMPORT[folder])
    }
    assert not wrong


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_machine_path(path: Path) -> None:
    if path == Path(__file__):
        pytest.skip("this file names the patterns")
    found = [line for line in path.read_text(encoding="utf-8").splitlines() if MACHINE_PATH.search(line)]
    assert not found


def test_no_file_over_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_the_lock_pins_every_package_and_leaves_out_what_torch_pins() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert not [line for line in lines if line.lower().startswith(("nvidia", "cuda", "triton", "sr4k"))]


def test_the_lock_holds_every_requirement_of_the_project() -> None:
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    # the extra "bench" is for comparisons alone: CI and users do without it
    listed = settings["options"]["install_requires"] + settings["options.extras_require"]["dev"]
    wanted = re.findall(r"^([\w.-]+)>=", listed, re.MULTILINE)
    assert len(wanted) > 10
    assert {name.lower().replace("_", "-") for name in wanted} <= {name.lower().replace("_", "-") for name in locked}
