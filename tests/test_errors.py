"""What a user sees when something is wrong: one line of plain text, the right exit code, and outputs left alone."""

import errno
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from mm_fibinet.errors import MESSAGE_LIMIT, UserError, first_line, printable, run_cli
from mm_fibinet.files import atomic_path, locked, require_output, require_output_folder, write_text

HOSTILE = "a\x1b[31mred\x1b]0;title\x07\r\nerror: forged\u202egnp.exe\x00\x9b\udcff\u2028b"


def ending(error, capsys):
    """How a script whose main raises this ends: (exit code, stderr)."""

    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_cli(main)
    return stopped.value.code, capsys.readouterr().err


def test_printable_escapes_what_a_terminal_obeys_and_keeps_text():
    assert printable(HOSTILE) == (r"a\x1b[31mred\x1b]0;title\x07\r\nerror: forged\u202egnp.exe\x00\x9b\udcff\u2028b")
    for text in ("C:\\data, 50 % \N{GREEK SMALL LETTER DELTA} AUC", "\u6f22\u5b57 \u0440\u0443\u0441 \U0001f3ac"):
        assert printable(text) == text


def test_a_message_is_one_line_whatever_it_quotes(capsys):
    code, err = ending(UserError(f"{HOSTILE}: no such file"), capsys)
    assert code == 2
    assert err.startswith("error: a\\x1b[31mred") and err.count("\n") == 1 and err[:-1].isprintable()


def test_a_message_does_not_print_a_whole_file(capsys):
    code, err = ending(UserError("begin" + "x" * 10**6 + "end"), capsys)
    assert code == 2 and err.startswith("error: begin") and err.endswith("end\n")
    assert len(err) < MESSAGE_LIMIT + 100 and f"{10**6 + 8 - MESSAGE_LIMIT:,} characters" in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 14.9 TiB"), "error: out of memory (Unable to allocate 14.9 TiB): use a"),
        (MemoryError(), "error: out of memory (the system gave no more)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "error: out of memory (CUDA out of memory. Tried"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "error: cannot use a file: the disk is full"),
        (
            PermissionError(errno.EACCES, "no", "in"),
            "cannot use in: permission denied: ask its owner for the right to use",
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "xxx: this name is too long"),
    ],
)
def test_the_machine_says_no(error, message, capsys):
    code, err = ending(error, capsys)
    assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("label"), RuntimeError("shape"), OSError("no number")])
def test_a_bug_keeps_its_traceback(error, capsys):
    def main():
        raise error

    with pytest.raises(type(error)):
        run_cli(main)


@pytest.mark.parametrize(
    ("said", "first"), [("one\ntwo", "one"), ("\n  one \n", "one"), ("x" * 999, "x" * 200), ("", "OSError")]
)
def test_the_first_line_of_what_a_library_says(said, first):
    assert first_line(OSError(said)) == first


def script(body: str) -> list[str]:
    return [sys.executable, "-c", f"from mm_fibinet.errors import run_cli\ndef main():\n    {body}\nrun_cli(main)"]


def test_a_reader_that_leaves_is_no_error():
    command = script("[print('line', i) for i in range(10**5)]")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_a_file_name_that_is_no_text_can_be_printed():
    command = script(r"print('done: caf\udce9.parquet')")
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done: caf\\udce9.parquet\n", b"")


@pytest.mark.parametrize("write", [lambda path: require_output(path), lambda path: write_text(path, "x")])
def test_a_device_or_a_folder_is_no_place_to_write(tmp_path, write):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, message in (("/dev/null", "a device"), (pipe, "a device or a pipe"), (tmp_path, "this is a folder")):
        with pytest.raises(UserError, match=message):
            write(path)
    assert pipe.is_fifo() and sorted(tmp_path.iterdir()) == [pipe]


def test_an_input_is_no_place_to_write_by_any_name(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    source = folder / "1.jpg"
    source.write_bytes(b"PAR1")
    (tmp_path / "symbolic").symlink_to(source)
    os.link(source, tmp_path / "hard")
    for path in (source, tmp_path / "symbolic", tmp_path / "hard", folder / ".." / "images" / "1.jpg"):
        with pytest.raises(UserError, match="is an input; inputs are never modified"):
            require_output(path, [None, source])
    with pytest.raises(UserError, match="is inside the input folder"):
        require_output(folder / "new.parquet", [folder])
    assert require_output(tmp_path / "images.parquet", [folder]) == tmp_path / "images.parquet"


def test_a_file_of_another_kind_is_not_replaced(tmp_path):
    thesis = tmp_path / "thesis.zip"
    thesis.write_text("three years of work")
    with pytest.raises(UserError, match=r"--out .*thesis.zip: there is a file that is no zip"):
        require_output(thesis, kind="zip", option="--out")
    thesis.write_bytes(b"PK\x05\x06" + bytes(18))
    assert require_output(thesis, kind="zip") == thesis
    assert require_output(tmp_path / "none.zip", kind="zip") == tmp_path / "none.zip"


def test_names_that_no_system_takes(tmp_path):
    for name in ("x" * 300, "nul\0character"):
        with pytest.raises(UserError):
            require_output(tmp_path / name)
    with pytest.raises(UserError, match="this name is too long"):
        write_text(tmp_path / ("x" * 300), "text")


@pytest.mark.parametrize("require", [require_output, lambda path: require_output_folder(path, [], ["card.json"])])
def test_links_that_go_in_a_circle_are_one_line(tmp_path, require):
    (tmp_path / "one").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "one")
    with pytest.raises(UserError, match=r"cannot write .*: its symbolic links go in a circle"):
        require(tmp_path / "one")


def test_a_failed_write_leaves_nothing(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_lock_is_refused_while_another_holds_it(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another process is at work there"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "refused",
    [(OSError(errno.ENOLCK, "No locks available"),), (BlockingIOError(), OSError(errno.EIO, "Input/output error"))],
)
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, refused):
    answers = iter(refused)

    def flock(descriptor, operation):
        raise next(answers)

    monkeypatch.setattr("mm_fibinet.files.fcntl.flock", flock)
    message = rf"lock: cannot be locked \({refused[-1].strerror}\).*folder on a local disk"
    with pytest.raises(UserError, match=message), locked(tmp_path, waiting="waiting"):
        pass


def test_a_folder_that_may_not_be_written_to_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # as root may write anywhere
    for output in (tmp_path / "o.parquet", tmp_path / "new" / "folder" / "o.parquet"):
        with pytest.raises(UserError, match=r"o\.parquet: permission denied: choose a folder you may write to"):
            require_output(output)
    (tmp_path / "open").mkdir()
    assert require_output(tmp_path / "open" / "o.parquet") and not (tmp_path / "new").exists()
