"""Options, markers and the environment every test runs in."""

import os
import tempfile
from pathlib import Path

import pytest

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
threads = max(1, (os.cpu_count() or 1) // workers)
# Set before any test imports torch, and inherited by kernels and command lines that tests start. A test that reached
# a hub would pass on one machine and fail on the next. Workers that share the cores must not each start a thread for
# every core: two such pools on two cores run several times slower than one thread each.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker has inherited what the process that started it set for itself
        os.environ[name] = str(threads)
    else:
        os.environ.setdefault(name, str(threads))
if "IPYTHONDIR" not in os.environ:  # two kernels would wait for each other's lock on one history database
    os.environ["IPYTHONDIR"] = tempfile.mkdtemp(prefix="prodsim-ipython-")

require_data = os.environ.get("PRODSIM_REQUIRE_DATA") == "1"


def pytest_addoption(parser):
    group = parser.getgroup("prodsim")
    group.addoption("--slow", action="store_true", help="also run tests marked slow")
    group.addoption("--gpu", action="store_true", help="also run tests marked gpu")
    group.addoption("--full", action="store_true", help="also run tests marked slow or full")


def unit_of_work(nodeid):
    "Which tests run one after the other in one worker: those of a file, that its fixtures are made once."
    path, _, name = nodeid.partition("::")
    if path.endswith("test_chapters.py"):
        return nodeid
    if path.endswith("test_install.py"):
        return f"{path}::colab" if "installed" in name or "colab" in name else nodeid
    return path


def pytest_xdist_make_scheduler(config, log):
    "xdist's own groups (`--dist loadgroup`) do nothing under pytest 9.2: each worker built every fixture again."
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return unit_of_work(nodeid)

    config.option.loadscopereorder = False  # the order below
    return Scheduler(config, log)


def missing_data():
    "Why real data cannot be read, or an empty string."
    folder = os.environ.get("PRODSIM_DATA", "")
    if not folder:
        return "PRODSIM_DATA is not set"
    if not Path(folder).is_absolute():
        return f"PRODSIM_DATA is not an absolute path: {folder}"
    return "" if Path(folder).is_dir() else f"PRODSIM_DATA names no folder: {folder}"


def expected_seconds(item):
    "How long a test says it takes (`long`), 0 if it says nothing."
    marker = item.get_closest_marker("long")
    return marker.args[0] if marker else 0


def pytest_collection_modifyitems(config, items):
    option = config.getoption
    off = {"slow": not (option("slow") or option("full")), "gpu": not option("gpu"), "full": not option("full")}
    hints = {"slow": "--slow or --full", "gpu": "--gpu", "full": "--full"}
    no_data = missing_data()
    for item in items:
        unwanted = [name for name in off if off[name] and item.get_closest_marker(name)]
        if unwanted:
            item.add_marker(pytest.mark.skip(reason=f"{unwanted[0]}: run with {hints[unwanted[0]]}"))
            item.switched_off = True
        elif no_data and item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=no_data))
    # The longest first, so that no worker is left alone with one of them at the end.
    items.sort(key=expected_seconds, reverse=True)


def fail_if_data_was_skipped(report, is_data_test):
    "With PRODSIM_REQUIRE_DATA=1, turns the skip of a test on real data into a failure."
    if not (require_data and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if is_data_test or "PRODSIM_DATA" in reason:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: PRODSIM_REQUIRE_DATA=1, but a test on real data did not run. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if not getattr(item, "switched_off", False):
        fail_if_data_was_skipped(report, item.get_closest_marker("data") is not None)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    fail_if_data_was_skipped(report, False)
    return report


def pytest_report_header(config):
    data = missing_data() or os.environ["PRODSIM_DATA"]
    return f"prodsim: {threads} thread(s) for each of {workers} worker(s); real data: {data}"
