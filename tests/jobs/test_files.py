"""Which files a job touches: its own and no other, by whatever name; and none if it is refused."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rootlet import run_jobs
from rootlet.errors import EngineClosedError, JobError, ModelError, RootletError

from .fake_engine import FakeEngine
from .files import read, write

TEXT = '{"prompt": "a"}\n{"prompt": "b"}\n'


def snapshot(folder):
    """Everything under a folder: kind, inode, content and (of files) time of change of each name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_ino)
        if stat.S_ISREG(status.st_mode):
            found[str(path)] += (status.st_mtime_ns, path.read_bytes())
    return found


def check_refused(folder, match, *paths, error=JobError, **options):
    """The job is refused for the reason given, before the engine is asked anything, and changes nothing."""
    engine = FakeEngine()
    options = {"engine": engine, "progress": False} | options
    before = snapshot(folder)
    with pytest.raises(error, match=match or None):
        run_jobs(*paths, **options)
    assert snapshot(folder) == before
    assert engine.prompts == []


@pytest.fixture
def good(tmp_path):
    """An input that nothing is wrong with."""
    path = tmp_path / "good.jsonl"
    path.write_text(TEXT)
    return path


UTF16 = "UTF-16"
CONTENTS = {
    "packed.jsonl.zst": (b"\x28\xb5\x2f\xfd" + b"x" * 20, "packed with zstd.*zstd -d"),
    "named_plainly.jsonl": (b"\x28\xb5\x2f\xfd" + b"x" * 20, "packed with zstd"),
    "packed.xz": (lzma.compress(TEXT.encode()), "packed with xz"),
    "packed.bz2": (bz2.compress(TEXT.encode()), "packed with bzip2"),
    "rows.parquet": (b"PAR1" + bytes(20), "Parquet"),
    "twice.gz": (gzip.compress(gzip.compress(TEXT.encode())), "packed with gzip twice"),
    "zstd_in.gz": (gzip.compress(b"\x28\xb5\x2f\xfd"), "packed with zstd"),
    "cut.gz": (gzip.compress(TEXT.encode() * 1000)[:-20], "damaged or cut short"),
    "utf16.jsonl": (TEXT.encode("utf-16"), UTF16),
    "utf16_le.jsonl": (TEXT.encode("utf-16-le"), UTF16),
    "utf16_be.jsonl": (TEXT.encode("utf-16-be"), UTF16),
    "utf32.jsonl": (TEXT.encode("utf-32"), UTF16),
    "model.gguf": (b"GGUF" + bytes(20), "a GGUF model"),
    "picture.jsonl": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(20), "not JSONL"),
    "archive.jsonl": (b"name.jsonl" + bytes(500), "binary data"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_inputs_that_hold_no_lines_are_refused(tmp_path, name):
    content, match = CONTENTS[name]
    (tmp_path / name).write_bytes(content)
    check_refused(tmp_path, match, tmp_path / name, tmp_path / "out.jsonl")


def test_a_gzip_input_is_resumed(tmp_path):
    """Whatever it is called, and made of several members."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n{"pro') + gzip.compress(b'mpt": "b"}\n'))
    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_jobs(path, output, engine=FakeEngine(interrupt_at=1), progress=False)
    engine = FakeEngine()
    assert run_jobs(path, output, engine=engine, progress=False).resumed == 1
    assert engine.prompts == ["b"]


@pytest.mark.parametrize(
    "name", ["out.jsonl.gz", "out.ZST", "out.xz", "out.parquet", "out.gguf", "out.tar.bz2"]
)
def test_outputs_whose_names_promise_something_else_are_refused(tmp_path, good, name):
    check_refused(tmp_path, "plain lines of JSON", good, tmp_path / name)


def test_what_is_no_path_is_refused(tmp_path, good):
    with good.open() as file:
        for wrong in (file, 5, None, ["in"], "", "a\0b", b""):
            check_refused(tmp_path, "must be the path of a file", wrong, tmp_path / "out")
            check_refused(tmp_path, "must be the path of a file", good, wrong)
    summary = run_jobs(os.fsencode(good), os.fsencode(tmp_path / "out"), engine=FakeEngine(), progress=False)
    assert summary.completed == 2


def test_outputs_that_cannot_be(tmp_path, good):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for output, match in {
        tmp_path: "not a regular file",
        tmp_path / "pipe": "not a regular file",
        "/dev/null": "not a regular file",
        tmp_path / "none" / "out": "does not exist",
        good / "out": "does not exist",
        tmp_path / "loop": "cannot be",
        tmp_path / ("x" * 250): "needs the name .* too long",  # the names beside it would be too long
        tmp_path / ("x" * 300): "cannot be used",
    }.items():
        check_refused(tmp_path, match, good, output)
    check_refused(tmp_path, "not a regular file", tmp_path / "pipe", tmp_path / "out")
    check_refused(tmp_path, "not a regular file", "/dev/zero", tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path, good):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    check_refused(tmp_path, "cannot be written to", good, folder / "out")


def test_standard_output_is_no_output(tmp_path, good):
    """Redirected to a file, it is a regular file like any other; the summary would be written into it."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fake_engine import FakeEngine; import rootlet;"
        "rootlet.run_jobs(sys.argv[2], '/dev/stdout', engine=FakeEngine(), progress=False)"
    )
    with (tmp_path / "out").open("w") as file:
        arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(good)]
        result = subprocess.run(arguments, stdout=file, stderr=subprocess.PIPE, text=True)
    assert "is where this process writes its messages" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.jsonl", "out"]


@pytest.mark.parametrize(
    "place", ["out", "out.job.json", "out.rootlet-tmp/records.jsonl", "out.rootlet-tmp/job.json"]
)
@pytest.mark.parametrize("how", ["itself", "hard link", "symlink", "relative", "folder link"])
def test_an_input_in_the_place_of_a_jobs_own_file(tmp_path, monkeypatch, place, how):
    folder = tmp_path / "folder"
    path = folder / place
    path.parent.mkdir(parents=True)
    path.write_text(TEXT)
    other = tmp_path / "other"
    given = {"itself": path, "relative": os.path.relpath(path), "folder link": other / place}.get(how, other)
    if how == "hard link":
        other.hardlink_to(path)
    elif how == "symlink":
        other.symlink_to(path)
    elif how == "folder link":
        other.symlink_to(folder, target_is_directory=True)
    message = "same file" if place == "out" else "keeps a file of its own"
    check_refused(tmp_path, message, given, folder / "out")
    check_refused(tmp_path, message, given, folder / "out", overwrite=True, force=True)


def test_names_that_a_job_has_used_before_are_free_for_inputs(tmp_path):
    for name in ("out.rewrite", "out.job.json.tmp", "out.tmp", "out.lock"):
        path = tmp_path / name
        path.write_text(TEXT + "not json\n")
        output = tmp_path / "out"
        run_jobs(path, output, engine=FakeEngine(), progress=False, overwrite=True)
        run_jobs(path, output, engine=FakeEngine(), progress=False, retry_errors=True)  # rewrites the output
        assert path.read_text() == TEXT + "not json\n"
        assert len(read(output)) == 3


def test_what_no_job_wrote_is_not_replaced(tmp_path, good):
    output, sidecar, scratch = (tmp_path / name for name in ("out", "out.job.json", "out.rootlet-tmp"))
    precious = write(tmp_path / "precious", [{"settings": {}}])

    def fill_scratch(name):
        scratch.mkdir()
        (scratch / name).write_text("precious")

    def nest_scratch():
        (scratch / "records.jsonl").mkdir(parents=True)

    for make, match in [
        (lambda: sidecar.write_text('{"my": "file"}'), "cannot be used: no job wrote it"),
        (lambda: sidecar.write_bytes(bytes(range(256))), "cannot be used: no job wrote it"),
        (lambda: sidecar.hardlink_to(precious), "cannot be used: no job wrote it"),
        (lambda: sidecar.symlink_to(precious), "cannot be used: it is not a regular file"),
        (lambda: sidecar.symlink_to("nowhere"), "cannot be used: it is not a regular file"),
        (lambda: sidecar.mkdir(), "cannot be used: it is not a regular file"),
        (lambda: os.mkfifo(sidecar), "cannot be used: it is not a regular file"),
        (lambda: scratch.write_text(""), "not made by a job: it is not a folder"),
        (lambda: scratch.symlink_to(tmp_path), "not made by a job: it is not a folder"),
        (lambda: fill_scratch("notes.txt"), "not made by a job: it holds 'notes.txt'"),
        (nest_scratch, "not made by a job: it holds 'records.jsonl'"),
    ]:
        make()
        check_refused(tmp_path, match, good, output)
        check_refused(tmp_path, match, good, output, overwrite=True, force=True)
        for path in (sidecar, scratch):
            if path.is_dir() and not path.is_symlink():
                for inner in path.iterdir():
                    (inner.rmdir if inner.is_dir() else inner.unlink)()
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


def test_a_job_file_of_another_version_is_refused(tmp_path, good):
    output = tmp_path / "out"
    run_jobs(good, output, engine=FakeEngine(), progress=False)
    sidecar = tmp_path / "out.job.json"
    value = json.loads(sidecar.read_text())
    for change in (
        {"rootlet_job": 3},
        {"rootlet_job": "2"},
        {"settings": None},
        {"settings": value["settings"] | {"model": 5}},
        {"settings": value["settings"] | {"seed": "1"}},
        {"settings": value["settings"] | {"new": 1}},
    ):
        from rootlet.engine.jobs.seal import seal

        changed = {name: field for name, field in (value | change).items() if name != "crc"}
        sidecar.write_bytes(seal(json.dumps(changed).encode()) + b"\n")
        check_refused(tmp_path, "cannot be used", good, output)


def test_models_are_never_written_to(tmp_path, good):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "vocab.txt").write_text("a")
    options = {"engine": None, "model": str(model), "overwrite": True}
    check_refused(tmp_path, "Model and output are the same", good, model / "vocab.txt", **options)


def test_other_refusals_leave_nothing_behind(tmp_path, good, monkeypatch):
    output = tmp_path / "out"
    repeated = write(tmp_path / "repeated", [{"id": 1, "prompt": "x"}] * 2)
    own = {"engine": None, "model": str(tmp_path / "no_model")}
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(40))
    refusals = [
        ((good,), {"sampling_params": {"temprature": 1}}, RootletError, "temprature"),
        ((good,), {"sampling_params": [1]}, (RootletError, TypeError), ""),
        ((good,), {"sampling_params": {"json_schema": {}, "regex": "a"}}, RootletError, ""),
        ((good,), {"engine": "model.gguf"}, JobError, "must be a rootlet.Engine, got str"),
        ((good,), {"engine": None, "model": 5}, RootletError, "model_path"),
        ((good,), {"engine": None}, JobError, "Give either engine"),
        ((good,), own, (RootletError, OSError), "no_model"),
        ((good,), {"engine": None, "model": str(broken)}, ModelError, ""),
        ((good,), own | {"engine_options": [1]}, JobError, "engine_options must be a dict"),
        ((good,), own | {"engine_options": {"page_size": "big"}}, RootletError, "page_size"),
        ((good,), own | {"engine_options": {"pagesize": 1}}, RootletError, "page_size"),
        ((good,), {"force": "no"}, JobError, "force must be True or False"),
        ((good,), {"overwrite": 1}, JobError, "overwrite must be True or False"),
        ((good,), {"max_in_flight": True}, JobError, "max_in_flight must be"),
        ((good,), {"window": 1.5}, JobError, "window must be"),
        ((good,), {"order": ["prefix"]}, JobError, "order must be"),
        ((repeated,), {}, JobError, "id 1 on lines 1 and 2"),
        ((tmp_path / "none",), {}, JobError, "does not exist"),
    ]
    for paths, options, error, match in refusals:
        check_refused(tmp_path, match, *paths, output, error=error, **options)
    # nor do they harm the output of an earlier job, also where it is to be overwritten
    run_jobs(good, output, engine=FakeEngine(), progress=False)
    output.write_bytes(output.read_bytes() + b'{"id": null, "ind')
    for paths, options, error, match in refusals:
        check_refused(tmp_path, match, *paths, output, error=error, **{"overwrite": True} | options)
    for overwrite in (False, True):
        check_refused(tmp_path, "same file", output, output, overwrite=overwrite)
    changed = write(tmp_path / "changed", [{"prompt": "new"}, {"prompt": "b"}])
    check_refused(tmp_path, "1 answered lines have changed", changed, output)
    check_refused(tmp_path, "begun with other settings", good, output, sampling_params={"top_k": 3})
    assert run_jobs(good, output, engine=FakeEngine(), progress=False).resumed == 2


def test_a_closed_engine_is_refused(tmp_path, good):
    class Closed(FakeEngine):
        def stats(self):
            raise EngineClosedError("The engine was closed.")

    check_refused(tmp_path, "closed", good, tmp_path / "out", error=RuntimeError, engine=Closed())


def test_an_output_that_is_taken_away_while_the_job_runs(tmp_path, good):
    output, away = tmp_path / "out", tmp_path / "away"
    write(good, [{"prompt": f"p{i}"} for i in range(20)])

    def truncate():
        os.truncate(output, 0)

    def append():
        with output.open("a") as file:
            file.write("mine\n")

    def replace():
        away.write_text("other")
        away.replace(output)

    for do, what in [
        (output.unlink, "was deleted"),
        (lambda: output.rename(away), "was moved away"),
        (replace, "was moved away or replaced|was deleted"),
        (truncate, "was written to by another program"),
        (append, "was written to by another program"),
    ]:

        class Meddling(FakeEngine):
            def submit(self, *args, do=do, **kwargs):
                if len(self.prompts) == 10:
                    do()
                return super().submit(*args, **kwargs)

        with pytest.raises(JobError, match=what):
            run_jobs(good, output, engine=Meddling(), progress=False, overwrite=True, max_in_flight=1)
        if away.exists():
            assert 8 <= len(read(away)) <= 10  # what had been written is whole, wherever it is now
            away.unlink()
        output.unlink(missing_ok=True)
