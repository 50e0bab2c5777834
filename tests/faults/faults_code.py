"""Counts of tests, tests without a guard, and a bare import."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from commands import ROOT, copy_sources
from faults_row import Row, progress, temporary_folder


def counted(fault: str, *arguments: str, least: int) -> Row:
    """Run some of the tests; all must pass, and there must be so many at least."""
    passed, failed = run_tests(ROOT, *arguments)
    return Row(fault, f"{passed} of {passed + failed}", passed >= least and not failed)


def run_tests(root: Path, *arguments: str) -> tuple[int, int]:
    """Run tests of the checkout in `root`; return how many passed, and how many did not."""
    said = pytest_output(root, *arguments)[-300:]
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed)", said)}
    return counts.get("passed", 0), counts.get("failed", 0)


def pytest_output(root: Path, *arguments: str) -> str:
    """Run tests of the checkout in `root`; return what pytest printed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest {' '.join(arguments)} did not run:\n{done.stdout}{done.stderr}")
    return done.stdout


GUARDS = (
    ("fsync of the file", "folders.py", "                sync(file.fileno())\n", "",
     "test_files.py", "on_the_disk_before"),
    ("fsync of the folder", "folders.py", "        self.sync()  # only now", "        # only now",
     "test_files.py", "on_the_disk_before"),
    ("rename into place", "folders.py", "                self.rename(temporary, name)\n",
     "                (self.path / name).write_bytes((self.path / temporary).read_bytes())\n",
     "test_files.py", "replacing"),
    ("the previous checkpoint", "folders.py", "                self._make_way(name, keep)\n",
     "                pass\n", "test_checkpoints.py", "last_two"),
    ("digest", "files.py", 'if metadata["sha256"] != _digest(metadata["structure"], arrays):',
     "if False:", "test_files.py", "changed_byte"),
    ("finite weights in a checkpoint", "training/checkpoint.py", "if wrong := not_finite(arrays):",
     "if wrong := None:", "test_checkpoints.py", "not_finite"),
    ("finite loss", "training/step.py", "    if not math.isfinite(value):", "    if False:",
     "test_divergence.py", "planted"),
    ("finite gradients", "training/step.py", "if wrong := not_finite(gradients):",
     "if wrong := None:", "test_divergence.py", "planted"),
    ("state checked before it is used", "training/run.py",
     "        self._check_arrays(state)\n", "", "test_checkpoints.py", "does_not_fit"),
    ("metrics on the disk first", "training/trainer.py",
     "        self._write_metrics(self.metrics.sync)\n", "",
     "test_training.py", "reach_the_disk"),
    ("lock", "folders.py", "        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)\n",
     "        pass\n", "test_train_errors.py", "another_process"),
    ("regular files only", "folders.py", "        if stat.S_ISREG(kind):\n", "        if True:\n",
     "test_bad_images.py", "broken_image and pipe"),
    ("allowed formats", "data/image.py", "Image.open(io.BytesIO(content), formats=FORMATS)",
     "Image.open(io.BytesIO(content))", "test_bad_images.py", "broken_image and postscript"),
    ("size of an image", "data/image.py", "if image.width * image.height > MAX_PIXELS:",
     "if False:", "test_bad_images.py", "broken_image and large_pixel"),
    ("errors of decoders", "data/image.py", "    except Exception as error:  # decoders",
     "    except UnidentifiedImageError as error:  # decoders", "test_bad_images.py",
     "broken_image and pixel_bomb"),
    ("scans of an image", "data/image_file.py", "    if scans > allowed:", "    if False:",
     "test_image_files.py", "at_once and scans"),
    ("share of unreadable images", "data/dataset.py",
     "        if count > allowed or count == size:\n", "        if False:\n",
     "test_bad_images.py", "too_many"),
    ("silent process", "data/worker_processes.py", "if silent > patience:", "if False:",
     "test_batch_processes.py", "process_that_is_stuck"),
    ("dead process", "data/worker_processes.py",
     "            raise WorkerError(self._obituary()) from None\n", "            pass\n",
     "test_batch_processes.py", "dead_process and kill"),
    ("pixels of all scans of a run-length BMP", "data/image_file.py",
     "    if RLE_PASSES * max(pixels, len(content)) > MAX_WORK:", "    if False:",
     "test_image_files.py", "at_once"),
    ("links in the way of a file", "folders.py",
     "        if not stat.S_ISREG(status.st_mode):\n            self.put_aside(name)\n        elif",
     "        if False:\n            self.put_aside(name)\n        elif",
     "test_files_folders.py", "in_the_way"),
    ("files of several names", "folders.py",
     "        elif status is not None and status.st_nlink > 1:\n", "        elif False:\n",
     "test_files_folders.py", "several_names"),
    ("lock on the folder", "folders.py",
     "if self._lost or self.folder.lock() is False:", "if self._lost:",
     "test_run_folder.py", "lock_file_that_is_removed"),
    ("another run in the folder", "folders.py",
     "        path = self.folder.where()\n        if not self.take():\n",
     "        path = self.folder.path\n        if False:\n",
     "test_run_folder.py", "folder_is_lost"),
    ("schema of a checkpoint", "training/checkpoint.py", "        check(content, CONTENT)\n",
     "        pass\n", "test_schema.py", "every_part"),
    ("contents of held-out images", "training/datasets.py",
     "if changed := kept.changed(kept.marked(images.paths)):", "if changed := []:",
     "test_held_out.py", "of_other_images"),
    ("names of a run's images", "data/kept.py", " if name in called else -1 for name in own],",
     " if name in called else 0 for name in own],", "test_held_out.py", "of_other_images"),
    ("training images that are evaluated", "training/datasets.py", "        if not count:\n",
     "        if True:\n", "test_held_out.py", "training_images_is_said"),
    ("class names that lead elsewhere", "data/copies.py",
     'if name in ("", ".", "..") or Path(name).name != name or "\\0" in name:', "if False:",
     "test_predict_sort.py", "lead_elsewhere"),
    ("copies that are there", "data/copies.py", "if _has(folder, target, content):", "if False:",
     "test_predict_sort.py", "is_left"),
    ("errors of optional packages", "optional.py",
     "    except (Exception, SystemExit) as error:\n", "    except ModuleNotFoundError as error:\n",
     "test_pictures.py", "matplotlib_that_is_broken"),
    ("streams that are closed", "cli/common.py", "        open_standard_streams()\n",
     "        pass\n", "test_output.py", "opened_first"),
    ("readers that are gone", "progress.py", "    except (OSError, ValueError) as error:",
     "    except FileExistsError as error:", "test_output.py", "nothing_is_lost"),
    ("letters that steer terminals", "progress.py",
     '    show("\\n".join(map(escaped, text.split("\\n"))) + "\\n", stream or sys.stdout)\n',
     '    show(text + "\\n", stream or sys.stdout)\n', "test_output.py", "shown_on_one_line"),
    ("seal of a compiled kernel", "backends/cpu/kernel_cache.py",
     "if content[-SEAL:] == hashlib.sha256(content[:-SEAL]).digest():", "if True:",
     "test_kernel_cache.py", "damaged"),
    ("which kernel it is", "backends/cpu/kernel_cache.py",
     "found[2] if found and found[:2] == (key, self._source_stamp) else None",
     "found[2] if found else None", "test_kernel_cache.py", "other_types"),
    ("signals while a kernel is loaded", "backends/cpu/runtime.py",
     "JitEngine.finalize_object = signals_held()(JitEngine.finalize_object)\n", "",
     "test_kernel_cache.py", "signals_while"),
    ("quota of the groups around", "threads.py", "for folder in (inside, *inside.parents):",
     "for folder in (inside,):", "test_threads.py", "tightest"),
    ("digests of prepared images", "data/manifest.py", "if digest != entry.sha256:", "if False:",
     "test_prepare_verify.py", "verify_names"),
)  # fmt: skip
"""Name, file, text, what takes its place, and the test that must then fail."""


def file_of(test: str) -> str:
    """Return the path of a test file below the root."""
    (path,) = ROOT.glob(f"tests/*/{test}")
    return str(path.relative_to(ROOT))


def removed_guards() -> Row:
    """Take each guard out of a copy of the code; its test must fail there, and pass before."""
    fault, noticed = "a guard taken out of the code", []
    with temporary_folder() as folder:
        for name in ("tinyalex", "tests", "examples", "kernels"):
            copy_sources(name, folder)
        shutil.copy(ROOT / "pyproject.toml", folder)
        files = {file_of(test) for *_, test, _ in GUARDS}
        words = {f"({word})" for *_, word in GUARDS}
        if run_tests(folder, *sorted(files), "-k", " or ".join(sorted(words)))[1]:
            return Row(fault, "their tests fail with the guards in place", False)
        for number, (name, file, text, instead, test, word) in enumerate(GUARDS):
            path = folder / "tinyalex" / file
            good = path.read_text()
            if good.count(text) != 1:
                raise RuntimeError(f"{file} has no guard {text!r}: mend the table in {__file__}")
            # Without its guard a test may wait for ever.
            arguments = (file_of(test), "-k", word, "--timeout", "60")
            path.write_text(good.replace(text, instead))
            if run_tests(folder, *arguments)[1]:
                noticed.append(name)
            path.write_text(good)
            progress(number, len(GUARDS))
    said = f"{len(noticed)} of {len(GUARDS)} noticed by a test: {', '.join(noticed)}"
    return Row(fault, said, len(noticed) == len(GUARDS))


def bare_import() -> Row:
    """Import the package where nothing optional is there and CuPy is broken."""
    with temporary_folder() as folder:
        for name in ("cupy", "tqdm", "matplotlib", "tensorboardX", "jinja2"):
            (folder / f"{name}.py").write_text("raise ImportError('broken')")
        # Processor time, for a busy machine stretches the clock.
        code = "import time, numpy; t = time.process_time(); import tinyalex, tinyalex.training; "
        code += "print(time.process_time() - t)"
        path = os.pathsep.join([str(folder), str(ROOT), *sys.path])
        command = [sys.executable, "-c", code]
        times = [
            float(subprocess.check_output(command, env={**os.environ, "PYTHONPATH": path}))
            for _ in range(5)
        ]
    seconds = statistics.median(times)
    said = f"works, {seconds:.2f} s beyond NumPy with the trainer"
    return Row("`import tinyalex` with broken optional packages", said, seconds < 0.5)
