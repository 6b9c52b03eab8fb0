"""Outputs: what they may replace, one writer at a time, whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mdpr.errors import CheckFailed, ConfigError, MdprError
from mdpr.stages.outputs import MARKER, beside, whole_or_not_at_all, write_whole

PORT = "prepared"


def contents(folder: Path) -> dict[str, str]:
    """Every path below `folder`, with a file's text."""
    found = {}
    for base, folders, names in os.walk(folder):
        for name in (*names, *folders):
            path = Path(base) / name
            plain = path.is_file() and not path.is_symlink()
            text = path.read_text() if plain else str(path.lstat().st_mode)
            found[str(path.relative_to(folder))] = text
    return found


def make(output: Path, text: str = "new", port: str = PORT, name: str = "file", **inputs: Path) -> None:
    with whole_or_not_at_all({port: output}, inputs) as (partial,):
        partial.mkdir()
        (partial / name).write_text(text)


def fail(output: Path) -> None:
    with whole_or_not_at_all({PORT: output}) as (partial,):
        partial.mkdir()
        raise CheckFailed("no")


def fails_for(name: str, rename: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    """`rename`, but for new outputs of `name`."""

    def renames(self: Path, target: Path) -> Path:
        if self.name.endswith(".new") and self.parent.name == f".{name}.mdpr":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    return renames


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with data of the user's, as the working folder; a home folder beside it."""
    files = {
        "home/letter": "dear",
        "home/project/README.md": "read me",
        "home/project/.git/HEAD": "ref",
        "home/project/data/imgs/cat/1.png": "cat",
        "home/project/data/raw.csv": "1",
        "home/project/data/other/notes": "mine",
        "home/project/mine.failed/notes": "mine",
        "home/project/.busy.mdpr/notes": "mine",
        "home/project/site/index.html": "<p>mine",
        "home/project/known/knowledge.json": '{"format": "mdpr-knowledge/1"}',
        "home/project/other/config.json": "{}",
        "home/project/report.json": '{"format": "mdpr-registration/1"}',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    root = tmp_path / "home/project"
    make(root / "features", port="features")
    make(root / "annotated")
    (root / "annotated/notes.txt").write_text("mine")
    make(root / "nested")
    (root / "nested/deep").mkdir()
    (root / "inside").mkdir()
    (root / "alias").symlink_to("data")
    (root / "hidden").symlink_to("inside")
    (root / "broken").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(root)
    return tmp_path


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("data", "holds prepare.root"),
        ("./data/", "holds prepare.root"),
        ("data/../data", "holds prepare.root"),
        ("{root}/data", "holds prepare.root"),
        ("alias/imgs", "imgs"),
        ("alias", "holds prepare.root"),
        ("hidden", "link"),
        ("broken", "link"),
        ("..", "working folder"),
        (".", "working folder"),
        ("", "working folder"),
        ("data/..", "working folder"),
        ("../..", "working folder"),
        ("/", "working folder"),
        ("{root}", "working folder"),
        ("data/other", "no earlier run wrote"),
        ("data/imgs", "is also prepare.root"),
        ("data/imgs/new", "lies in prepare.root"),
        ("alias/imgs/new", "lies in prepare.root"),
        ("README.md", "is a file"),
        ("report.json", "is a file"),
        (".git", "no earlier run wrote"),
        ("features", "no earlier run wrote"),
        ("annotated", "notes.txt"),
        ("nested", "deep"),
        ("site", "no earlier run wrote"),
        ("known", "no earlier run wrote"),
        ("other", "no earlier run wrote"),
        ("mine", "mine.failed"),
        ("busy", ".busy.mdpr"),
        ("pipe", "neither"),
        ("n" * 256, "256 bytes"),
        ("é" * 128, "256 bytes"),
        ("/proc/mdpr-output", "/proc"),
    ],
)
def test_an_output_that_would_destroy_something_is_refused_before_work(project: Path, output: str, reason: str) -> None:
    before = contents(project)
    path = output.replace("{root}", str(Path.cwd()))
    with pytest.raises(MdprError, match=reason) as raised:
        make(Path(path), **{"prepare.root": Path("data/imgs")})
    assert "\n" not in str(raised.value)
    assert contents(project) == before


def test_an_output_may_not_hold_an_input_or_another_output(project: Path) -> None:
    make(Path("own"))
    for name, inputs in {"own": {"describe.path": Path("own/file")}, "../project/own": {"probe": Path("own")}}.items():
        with pytest.raises(ConfigError, match=r"holds describe.path|is also probe"):
            make(Path(name), **inputs)
    with (
        pytest.raises(ConfigError, match="is also model"),
        whole_or_not_at_all({"model": Path("a"), "evaluation": Path("b/../a")}),
    ):
        pass
    assert not Path("a").exists()


@pytest.mark.parametrize("folder", [".", "inside"])
def test_the_working_folder_is_never_replaced_even_if_it_is_an_output(
    project: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("inside")
    with pytest.raises(ConfigError, match="working folder"):
        make(Path("..") / folder)


def test_the_home_folder_is_never_replaced(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(project / "elsewhere")
    monkeypatch.setenv("HOME", str(project / "elsewhere"))
    with pytest.raises(ConfigError, match="home folder"):
        make(project / "elsewhere")


def test_an_output_replaces_an_earlier_one_an_empty_folder_and_nothing(project: Path) -> None:
    for path in (Path("own"), Path("own/"), Path("inside"), Path("alias/own")):
        make(path)
        assert sorted(item.name for item in path.iterdir()) == [MARKER, "file"]
    assert contents(project)["home/project/data/raw.csv"] == "1"


def test_scores_have_no_marker_and_are_known_by_their_keys(project: Path) -> None:
    make(Path("scores"), '{"fused": 1.0}', port="scores", name="all.json")
    assert [path.name for path in Path("scores").iterdir()] == ["all.json"]
    for text in ('{"fused": 2.0}', '{"fused": 3.0}'):
        make(Path("scores"), text, port="scores", name="all.json")
        assert Path("scores/all.json").read_text() == text

    def is_refused() -> None:
        with pytest.raises(ConfigError, match="no earlier run wrote"):
            make(Path("scores"), port="scores")

    Path("scores/thesis.txt").write_text('{"fused": 1.0}')
    is_refused()
    Path("scores/thesis.txt").unlink()
    Path("scores/all.json").rename("scores/few.json")
    is_refused()
    for text in ('{"physics": 1.0}', "{}", "[]"):
        Path("scores/all.json").write_text(text)
        is_refused()


def test_an_output_that_is_a_file_is_known_by_its_format(project: Path) -> None:
    def register(path: str) -> None:
        with whole_or_not_at_all({"registration": Path(path)}) as (partial,):
            partial.write_text('{"format": "mdpr-registration/1", "version": "2"}')

    for path in ("report.json", "new.json", "new.json"):
        register(path)
        assert json.loads(Path(path).read_text())["version"] == "2"
    for path in ("README.md", "data", "known/knowledge.json"):
        with pytest.raises(ConfigError, match="no earlier run wrote"):
            register(path)


def test_the_marker_names_the_port_and_every_file_and_is_the_same_each_time(project: Path) -> None:
    make(Path("own"))
    first = Path("own", MARKER).read_bytes()
    assert json.loads(first) == {"format": "mdpr-output/1", "port": PORT, "files": ["file"]}
    make(Path("own"), "other")
    assert Path("own", MARKER).read_bytes() == first


@pytest.mark.parametrize("length", [240, 250, 255])
@pytest.mark.parametrize("letter", ["n", "é"])
def test_a_name_as_long_as_the_file_system_takes(project: Path, letter: str, length: int) -> None:
    name = letter * (length // len(letter.encode()))
    make(Path(name))
    make(Path(name), "newer")
    with pytest.raises(CheckFailed):
        fail(Path(name))
    assert (Path(name) / "file").read_text() == "newer"
    assert beside(Path(name), "", ".failed").is_dir()


def test_a_path_of_1500_folders(project: Path) -> None:
    try:
        make(Path("x/" * 1500 + "y"))
        assert Path("x/" * 1500 + "y/file").read_text() == "new"
    finally:
        subprocess.run(["rm", "-rf", "x"], check=True)  # pytest's own clean-up is recursive
    with pytest.raises(MdprError, match="File name too long"):
        make(Path("x/" * 3000 + "y"))


def hold(output: Path) -> subprocess.Popen[str]:
    """A process that writes `output` until its stdin is closed."""
    code = (
        "import sys; from pathlib import Path; from mdpr.stages.outputs import whole_or_not_at_all\n"
        "with whole_or_not_at_all({'prepared': Path(sys.argv[1])}) as (partial,):\n"
        "    partial.mkdir(); (partial / 'file').write_text('theirs'); print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    return child


def test_a_second_writer_is_refused_at_once_and_the_first_finishes(project: Path) -> None:
    child = hold(Path("own"))
    for name in ("own", "alias/../own", str(Path("own").absolute())):
        with pytest.raises(ConfigError, match=rf"pid {child.pid} writes .* since \d\d:\d\d"):
            make(Path(name))
    child.communicate("")
    assert child.returncode == 0
    assert Path("own/file").read_text() == "theirs"
    make(Path("own"))
    assert not list(Path().glob(".own*"))


def test_what_a_killed_writer_left_is_removed_and_nothing_else(project: Path) -> None:
    make(Path("own"), "old")
    child = hold(Path("own"))
    child.kill()
    child.communicate()
    assert len(list(Path(".own.mdpr").iterdir())) == 2
    assert Path("own/file").read_text() == "old"
    Path(".own.partial").write_text("mine")
    make(Path("own"))
    assert sorted(path.name for path in Path().glob(".own*")) == [".own.partial"]
    assert Path("own/file").read_text() == "new"


def test_an_output_that_was_moved_aside_by_a_killed_writer_is_put_back(project: Path) -> None:
    make(Path("own"), "old")
    Path(".own.mdpr").mkdir()
    Path("own").rename(".own.mdpr/old")
    with pytest.raises(MdprError, match="stops"), whole_or_not_at_all({PORT: Path("own")}):
        raise MdprError("stops")
    assert Path("own/file").read_text() == "old"
    assert not Path(".own.mdpr").exists()


def test_of_several_outputs_none_is_replaced_if_one_cannot_be(project: Path) -> None:
    make(Path("first"), "old")
    Path("wall").mkdir()

    def blocks(partial: list[Path]) -> None:
        for path in partial:
            path.mkdir()
            (path / "file").write_text("new")
        Path("wall/stands").write_text("in the way")

    with (
        pytest.raises(CheckFailed, match=r"wall.*no earlier run wrote"),
        whole_or_not_at_all({PORT: Path("first"), "probe": Path("wall")}) as partial,
    ):
        blocks(partial)
    assert Path("first/file").read_text() == "old"
    assert Path("wall/stands").read_text() == "in the way"
    assert Path("wall.failed/file").read_text() == "new"


def test_work_that_cannot_be_put_in_place_brings_the_old_output_back(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(Path("first"), "old")
    monkeypatch.setattr(Path, "rename", fails_for("first", Path.rename))
    with pytest.raises(MdprError, match="Input/output error"):
        make(Path("first"))
    assert Path("first/file").read_text() == "old"
    assert not list(Path().glob(".first*"))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["stray", "foreign", "link", "file", "pipe"])
def test_what_is_set_aside_is_kept_whole_and_an_earlier_output_is_not(
    project: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fails: bool
) -> None:
    own = {"stray": "annotated", "foreign": "data/other", "link": "hidden", "file": "README.md", "pipe": "pipe"}[kind]
    make(Path("second"), "old", port="probe")
    before, mode = contents(project), Path(own).lstat().st_mode

    def write() -> None:
        outputs = {PORT: Path(own), "probe": Path("second")}
        with whole_or_not_at_all(outputs, set_aside=outputs) as partial:
            for path in partial:
                path.mkdir()
                (path / "file").write_text("newest")

    with monkeypatch.context() as patch:
        if fails:
            patch.setattr(Path, "rename", fails_for("second", Path.rename))
            with pytest.raises(MdprError, match="Input/output error"):
                write()
            assert contents(project) == before
            return
        write()
    (kept,) = Path(own).parent.glob(f"{Path(own).name}.replaced-*")
    assert kept.lstat().st_mode == mode
    inside = {
        name.replace(f"home/project/{kept}", f"home/project/{own}", 1): text
        for name, text in contents(project).items()
        if name.startswith(f"home/project/{kept}")
    }
    assert inside == {name: text for name, text in before.items() if f"{name}/".startswith(f"home/project/{own}/")}
    write()
    assert Path(own, "file").read_text() == Path("second/file").read_text() == "newest"
    assert [path.name for path in Path().rglob("*.replaced-*")] == [kept.name]


def test_only_the_outputs_that_are_named_are_set_aside(project: Path) -> None:
    outputs = {PORT: Path("annotated"), "probe": Path("site")}
    with pytest.raises(ConfigError, match=r"probe: .*site"), whole_or_not_at_all(outputs, set_aside=[PORT]):
        pass
    with pytest.raises(ConfigError, match="working folder"), whole_or_not_at_all({PORT: Path()}, set_aside=[PORT]):
        pass
    assert Path("annotated/notes.txt").read_text() == "mine"
    assert not list(Path().glob("*.replaced-*"))


def test_a_checkpoint_that_is_not_one_is_not_removed(project: Path) -> None:
    Path(".own.checkpoint").mkdir()
    Path(".own.checkpoint/thesis").write_text("mine")
    with (
        pytest.raises(ConfigError, match="not a checkpoint"),
        whole_or_not_at_all({PORT: Path("own")}, checkpoint=Path(".own.checkpoint")),
    ):
        pass
    assert Path(".own.checkpoint/thesis").read_text() == "mine"


def test_twenty_writers_at_once_leave_one_whole_output(project: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mdpr.errors import ConfigError\n"
        "from mdpr.stages.outputs import whole_or_not_at_all\n"
        "for _ in range(20):\n"
        "    try:\n"
        "        with whole_or_not_at_all({'prepared': Path('own')}) as (partial,):\n"
        "            partial.mkdir(); [(partial / name).write_text(sys.argv[1]) for name in 'ab']\n"
        "    except ConfigError as error: assert 'writes own since' in str(error), error\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(number)]) for number in range(6)]
    deadline = time.monotonic() + 120
    while any(writer.poll() is None for writer in writers) and time.monotonic() < deadline:
        with suppress(FileNotFoundError):  # between the old output and the new one
            assert {path.name for path in Path("own").iterdir()} <= {MARKER, "a", "b"}
    assert [writer.wait() for writer in writers] == [0] * 6
    assert Path("own/a").read_text() == Path("own/b").read_text()
    assert not list(Path().glob(".own*"))


def test_a_text_is_whole_or_not_written(tmp_path: Path) -> None:
    write_whole(tmp_path / "page.html", "text")
    assert (tmp_path / "page.html").read_text() == "text"
    write_whole(tmp_path / "new" / "folder" / "page.html", "text")
    assert (tmp_path / "new" / "folder" / "page.html").read_text() == "text"
    for place in (
        tmp_path / "page.html" / "page.html",
        tmp_path / "page.html" / "new" / "page.html",
        Path("/proc/no/x"),
    ):
        with pytest.raises(MdprError, match="cannot be written"):
            write_whole(place, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "page.html"]


@pytest.mark.parametrize("replaces", [None, "text"])
def test_a_pipe_is_written_to_and_stays_a_pipe(replaces: str | None, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "text", replaces=replaces)
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("page.html")
    for text in ("new", "newer"):
        write_whole(tmp_path / "link", text)
        assert (tmp_path / "page.html").read_text() == text
    assert (tmp_path / "link").is_symlink()


def test_a_file_of_somebody_else_is_not_replaced_by_a_page(project: Path) -> None:
    page = project / "page.html"
    write_whole(page, "<html>made by us</html>", replaces="made by us")
    write_whole(page, "<html>made by us, newer</html>", replaces="made by us")
    page.write_text("my own notes")
    for path in (page, project):
        with pytest.raises(ConfigError, match="was not written by this command"):
            write_whole(path, "<html>made by us</html>", replaces="made by us")
    assert page.read_text() == "my own notes"
